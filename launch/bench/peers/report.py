"""What was measured of several servers, and how it is told: medians of the rounds, in tables and a picture."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.lab.plots import figure

OURS = "skipjoin"


class Run(msgspec.Struct, frozen=True):
    """One load on one server. Figures are those of `launch.lab.samples.summary`."""

    server: str
    load: str
    round: int
    failed: int
    tokens_per_s: float
    requests_per_s: float
    figures: dict[str, float]
    short: dict[str, float]  # of the requests with short outputs; none where all are long
    busy_tokens_per_s: float = 0.0  # of a closed loop, while every client had a request; old files lack it
    errors: list[str] = []  # why the first of those that failed did


class Comparison(msgspec.Struct, frozen=True):
    """All runs, and where they were made."""

    machine: str
    threads: int
    date: str
    runs: list[Run]
    versions: dict[str, str] = {}  # of the servers; old files lack them


Figure = Callable[[Run], float]

_COLUMNS: dict[str, Figure] = {
    "tok/s": lambda run: run.tokens_per_s,
    "TTFT, ms": lambda run: 1e3 * run.figures["mean_ttft_s"],
    "TTFT P95, ms": lambda run: 1e3 * run.figures["p95_ttft_s"],
    "TPOT, ms": lambda run: 1e3 * run.figures["mean_tpot_s"],
    "JCT, s": lambda run: run.figures["mean_jct_s"],
    "JCT P95, s": lambda run: run.figures["p95_jct_s"],
    "short JCT P95, s": lambda run: run.short.get("p95_jct_s", math.nan),
    "failed": lambda run: run.failed,
}


def medians(comparison: Comparison) -> dict[str, dict[str, dict[str, float]]]:
    """By load, server and column; without those that say nothing of a load, such as of short requests in one stream."""
    return {
        load: {server: _told(runs) for server, runs in by_server.items()}
        for load, by_server in _grouped(comparison.runs).items()
    }


def _told(runs: Sequence[Run]) -> dict[str, float]:
    found = {name: statistics.median(map(pick, runs)) for name, pick in _COLUMNS.items()}
    return {name: figure for name, figure in found.items() if not math.isnan(figure)}


def report(comparison: Comparison) -> Iterator[str]:
    """Lines of text: a table for each load."""
    for load, by_server in medians(comparison).items():
        yield f"\n{load:<30}" + "".join(f"{name:>18}" for name in _COLUMNS)
        for server, figures in by_server.items():
            yield f"{server:<30}" + "".join(f"{figures.get(name, math.nan):18.4g}" for name in _COLUMNS)


def draw(comparison: Comparison, path: Path) -> None:
    """Throughput, time to first token and short requests, each on a panel: bars by load, whiskers over the rounds."""
    grouped = _grouped(comparison.runs)
    servers = list(dict.fromkeys(run.server for run in comparison.runs))
    with figure(path, len(_DRAWN), width=6.4) as axes:
        for axis, (name, title) in zip(axes, _DRAWN.items(), strict=True):
            _draw_bars(axis, grouped, servers, _COLUMNS[name])
            axis.set_title(title)
        axes[0].legend(fontsize="x-small", loc="upper left")


def _draw_bars(axis: Any, grouped: dict[str, dict[str, list[Run]]], servers: list[str], pick: Figure) -> None:
    """A load that `pick` says nothing of has no place."""
    picked = {
        load: {server: sorted(v for v in map(pick, runs) if not math.isnan(v)) for server, runs in by_server.items()}
        for load, by_server in grouped.items()
    }
    shown = {load: values for load, values in picked.items() if any(values.values())}
    width = 0.8 / len(servers)
    for place, server in enumerate(servers):
        found = {index: values[server] for index, values in enumerate(shown.values()) if values.get(server)}
        middles = [statistics.median(values) for values in found.values()]
        axis.bar(
            [index + (place - (len(servers) - 1) / 2) * width for index in found],
            middles,
            width,
            yerr=[
                [middle - values[0] for middle, values in zip(middles, found.values(), strict=True)],
                [values[-1] - middle for middle, values in zip(middles, found.values(), strict=True)],
            ],
            label=server,
            color=f"C{place}",
            capsize=1.5,
            error_kw={"lw": 0.8},
        )
    axis.set_xticks(range(len(shown)), [load.replace(" of ", "\nof ") for load in shown], fontsize="x-small")
    axis.set_ylim(bottom=0)  # the bars' lengths are to be compared
    axis.grid(axis="y", alpha=0.3)


_DRAWN = {  # with their titles
    "tok/s": "output tok/s",
    "TTFT P95, ms": "time to first token, P95, ms",
    "short JCT P95, s": "short requests' JCT, P95, s",
}


def _grouped(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """By load and server, in the order in which they first came."""
    grouped: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.load, {}).setdefault(run.server, []).append(run)
    return grouped
