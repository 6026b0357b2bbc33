"""Text for grammars: markers across pieces, margins, and giving back what turned out to be no markup."""

from collections.abc import Generator

import pytest

from gateway.text.output.parts import Content, Part
from gateway.text.output.source import Malformed, Source


def run(reading: Generator[None, None, None], source: Source, *pieces: str) -> list[list[Part]]:
    """What each piece makes certain, and then the end."""
    certain = []
    for piece in pieces:
        source.feed(piece)
        next(reading)
        certain.append(source.take())
    source.end()
    next(reading, None)
    return [*certain, source.take()]


def until(source: Source, marker: str) -> Generator[None, None, None]:
    if (yield from source.content_until(marker)):
        source.drop()
    yield from source.content()


def test_what_may_become_a_marker_is_held_back_and_no_more() -> None:
    source = Source()
    parts = run(until(source, "<tag>"), source, "a <", "ta", "b <t", "ag", "> c")
    assert parts == [[Content("a ")], [], [Content("<tab ")], [], [Content("c")], []]


def test_a_marker_that_was_only_begun_comes_in_the_end() -> None:
    source = Source()
    assert run(until(source, "<tag>"), source, "a<ta") == [[Content("a")], [Content("<ta")]]


def test_a_marker_is_skipped_only_if_all_of_it_comes_next() -> None:
    source = Source()

    def reading() -> Generator[None, None, None]:
        assert not (yield from source.skip("abc"))
        assert (yield from source.skip("abd"))
        with pytest.raises(Malformed):
            yield from source.expect("x", "y")
        assert (yield from source.expect("x", "z")) == "z"
        assert not (yield from source.skip("end"))
        yield from source.content()

    assert run(reading(), source, " a", "bd ", "zex") == [[], [], [Content(" abd z"), Content("ex")], []]


def test_what_was_read_in_vain_is_content() -> None:
    source = Source()

    def reading() -> Generator[None, None, None]:
        with pytest.raises(Malformed):
            yield from source.value()
        yield from source.content()

    assert run(reading(), source, " {tru", "e}") == [[Content(" {"), Content("tru")], [Content("e}")], []]
