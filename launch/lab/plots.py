"""Pictures of latencies, with matplotlib: an extra, imported only where something is drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.config import ConfigError
from launch.lab.samples import Sample, by_length


def matplotlib_pyplot() -> ModuleType:
    """matplotlib.pyplot, set up for files. Raises ConfigError where it is not installed."""
    try:
        import matplotlib  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise ConfigError("drawing needs matplotlib: pip install 'skipjoin[plot]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "skipjoin"  # the same picture is the same file
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot


def check_picture(path: Path) -> None:
    """Raises ConfigError where no such picture can be written: better before something is measured than after it."""
    matplotlib_pyplot()
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415

    endings = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in endings:
        raise ConfigError(f"{path} does not end as a picture does: {', '.join(sorted(endings))}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def figure(path: Path, columns: int, *, width: float = 4.2, height: float = 3.4) -> Iterator[list[Any]]:
    """The axes of a row of panels; what was drawn is saved when the context ends well."""
    pyplot = matplotlib_pyplot()
    canvas, axes = pyplot.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    try:
        yield list(axes[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        pyplot.close(canvas)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line with error bars."""

    xs: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float]


STYLES = {
    "static": ("tab:gray", "x"),
    "fcfs": ("tab:red", "o"),
    "mlfq": ("tab:orange", "s"),
    "skip-join": ("tab:blue", "D"),
    "srpt": ("tab:green", "^"),
}


def draw_curves(axis: Any, curves: Mapping[str, Curve], *, x: str, y: str, slo: float | None = None) -> None:
    """Curves by name on one panel, the objective as a dashed line."""
    for name, curve in curves.items():
        colour, marker = STYLES.get(name, (None, "o"))
        axis.errorbar(
            curve.xs, curve.means, yerr=curve.deviations, label=name, color=colour, marker=marker, ms=4, capsize=2
        )
    if slo is not None:
        axis.axhline(slo, color="black", ls="--", lw=1, label="SLO")
    axis.set(xlabel=x, ylabel=y, yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def plot_latencies(samples: Sequence[Sample], path: Path) -> None:
    """Cumulative distributions of JCT, normalized latency and TTFT, by output length."""
    with figure(path, 3) as axes:
        for axis, (name, pick) in zip(axes, _LATENCIES.items(), strict=True):
            for label, group in {"all": list(samples), **by_length(samples)}.items():
                values = np.sort([pick(sample) for sample in group])
                axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=label)
            axis.set(xlabel=name, ylabel="share of requests", xscale="log")
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize="small")


_LATENCIES: dict[str, Callable[[Sample], float]] = {
    "JCT (s)": lambda sample: sample.jct_s,
    "latency per output token (s)": lambda sample: sample.norm_s,
    "TTFT (s)": lambda sample: sample.ttft_s,
}
