"""What an experiment is: something to measure, kept as JSON, and a section of the page made from it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

Data = Any  # JSON of the experiment's own shape


class Experiment(Protocol):
    """Measured once, rendered as often as one likes.

    Its prose stands in `{name}.md` beside the code, with the names of pieces in braces where figures belong.
    """

    name: str  # of its files

    def measure(self, seeds: int) -> Data:
        """Run it, with a progress bar. `seeds`: how many seeds each figure is the mean of."""
        ...

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        """The pieces of its section, in Markdown. Pictures go to the folder, as `{name}....png`."""
        ...


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; numbers get three significant digits."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    text = f"{value:.3g}"
    return (f"{value:.0f}" if "e" in text else text) + unit


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
