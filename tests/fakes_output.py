"""Outputs of models, read piece by piece, for tests of the parsers."""

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise

from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.text.output.formats import ToolFormat
from gateway.text.output.parser import OutputForm, OutputParser
from gateway.text.output.parts import CallStart, Part

NAMES = frozenset({"f", "get_weather"})


def form_of(tool_format: ToolFormat | None, *, one_call: bool = False) -> OutputForm:
    return OutputForm(tool_format, names=NAMES, one_call=one_call)


def read(form: OutputForm, text: str, cuts: Iterable[int] = ()) -> list[Part]:
    """The parts of `text`, pushed in the pieces that `cuts` leave; neighbours of one kind are joined."""
    parser = OutputParser(form)
    parts = [part for piece in pieces(text, cuts) for part in parser.push(piece)]
    return merged(parts + parser.flush())


def pieces(text: str, cuts: Iterable[int]) -> Iterator[str]:
    for start, end in pairwise([0, *sorted(cuts), len(text)]):
        yield text[start:end]


def merged(parts: list[Part]) -> list[Part]:
    return [whole for _, run in groupby(parts, _kind) for whole in _whole(list(run))]


def _kind(part: Part) -> tuple[type, int]:
    return type(part), getattr(part, "index", 0)


def _whole(run: list[Part]) -> Iterator[Part]:
    """Neighbours of one kind, as one part."""
    first = run[0]
    if isinstance(first, CallStart):
        yield from run
    else:
        yield replace(first, text="".join(part.text for part in run if not isinstance(part, CallStart)))


@st.composite
def cut_texts(draw: st.DrawFn, fragments: list[str]) -> tuple[str, list[int]]:
    """A text put together from `fragments`, and places to cut it."""
    text = "".join(draw(st.lists(st.sampled_from(fragments), max_size=16)))
    return text, draw(st.lists(st.integers(0, len(text)), max_size=12))
