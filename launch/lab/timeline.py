"""Timelines: every job's life as a line in time, in the colours of its levels. From recordings, real or simulated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.recording import Change, Place
from launch.lab.plots import matplotlib_pyplot

MOST_JOBS = 120  # more lines than that nobody can tell apart: later jobs are left out

# How a waiting job is drawn: (colour, thickness). A running one has its level's colour, and is the thickest.
_WAITING: dict[Place, tuple[str, float]] = {
    "cold": ("#d9d9d9", 0.15),
    "device": ("#8c8c8c", 0.25),
    "offloading": ("#c44e52", 0.45),
    "host": ("#4c72b0", 0.25),
    "uploading": ("#55a868", 0.45),
}
_LABELS: dict[Place, str] = {
    "cold": "waits, no KV yet",
    "device": "waits, KV on the device",
    "offloading": "KV moves to the host",
    "host": "waits, KV on the host",
    "uploading": "KV moves to the device",
}
_RUNNING = 0.85
_MOMENT_S = 0.01


@dataclass(frozen=True, slots=True)
class Span:
    """A time that a job spent at one place."""

    job: int
    start_s: float
    end_s: float
    place: Place
    level: int


def spans(changes: Sequence[Change]) -> Iterator[Span]:
    """The spans of all jobs, times from the first change on; what was not ended goes on to the last change.

    Moments between two iterations are no span: there every job waits on the device.
    """
    if not changes:
        return
    zero, last = changes[0].at, changes[-1].at
    since: dict[int, Change] = {}
    for change in changes:
        before = since.pop(change.job, None)
        if before is not None and change.at - before.at > (_MOMENT_S if before.place == "device" else 0.0):
            yield Span(change.job, before.at - zero, change.at - zero, before.place, before.level)
        if change.place != "ended":
            since[change.job] = change
    for change in since.values():
        if change.at < last:
            yield Span(change.job, change.at - zero, last - zero, change.place, change.level)


def joined(pieces: Iterator[Span]) -> list[Span]:
    """Spans of the same job, place and level with at most a moment between them, as one."""
    open_spans: dict[int, Span] = {}
    done: list[Span] = []
    for piece in pieces:
        before = open_spans.get(piece.job)
        if before is None:
            open_spans[piece.job] = piece
        elif _continues(before, piece):
            open_spans[piece.job] = Span(piece.job, before.start_s, piece.end_s, piece.place, piece.level)
        else:
            done.append(before)
            open_spans[piece.job] = piece
    return done + list(open_spans.values())


def _continues(before: Span, after: Span) -> bool:
    same = (before.place, before.level) == (after.place, after.level)
    return same and after.start_s - before.end_s <= _MOMENT_S


def _first_jobs(changes: Sequence[Change]) -> list[Change]:
    order = {job: index for index, job in enumerate(dict.fromkeys(change.job for change in changes))}
    kept = (change for change in changes if order[change.job] < MOST_JOBS)
    return [msgspec.structs.replace(change, job=order[change.job]) for change in kept]


def lives(changes: Sequence[Change]) -> list[Span]:
    """What a timeline shows of a recording: the lives of the first jobs to arrive, which are numbered from 0 on."""
    return joined(spans(_first_jobs(changes)))


def draw_timelines(panels: Mapping[str, Sequence[Span]], path: Path) -> None:
    """One panel for each recording's lives, with a line for each job in order of arrival. Raises ConfigError."""
    pyplot = matplotlib_pyplot()
    from matplotlib.lines import Line2D  # noqa: PLC0415 - after it is known to be there

    levels = max((span.level for panel in panels.values() for span in panel), default=0)
    colours = pyplot.get_cmap("plasma", levels + 2)
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(11, 1 + 3.2 * len(panels)), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (name, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for span in panel:
            colour, height = (colours(span.level), _RUNNING) if span.place == "runs" else _WAITING[span.place]
            axis.broken_barh([(span.start_s, span.end_s - span.start_s)], (span.job - height / 2, height), color=colour)
        axis.set(title=name, ylabel="job, by arrival")
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel("seconds")
    legend = [Line2D([], [], color=colours(level), lw=6, label=f"runs, level {level}") for level in range(levels + 1)]
    legend += [Line2D([], [], color=_WAITING[place][0], lw=3, label=label) for place, label in _LABELS.items()]
    figure.legend(handles=legend, loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
