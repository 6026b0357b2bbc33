"""Stop strings in a stream: found across pieces, cut exactly, nothing held back that need not be."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.text.stop_strings import StopStrings

TEXT = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def run(stops: list[str], pieces: list[str], *, included: bool = False) -> tuple[str, bool]:
    matcher = StopStrings(stops, included=included).matcher()
    text = "".join(map(matcher.push, pieces))
    return text + matcher.flush(), matcher.stopped


def expected(stops: list[str], text: str) -> tuple[str, bool]:
    """By brute force: the first end of any stop string, and of those that end there the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


def test_a_stop_string_across_pieces_is_cut_out_with_all_that_follows() -> None:
    assert run(["\n\nUser:"], ["Hello.\n", "\nUs", "er: more", "x"]) == ("Hello.", True)


def test_the_beginning_of_a_stop_string_comes_late_when_it_was_none() -> None:
    matcher = StopStrings(["END"]).matcher()
    assert [matcher.push(piece) for piece in ("a", "E", "N", "N", "E")] == ["a", "", "", "ENN", ""]
    assert matcher.flush() == "E"


def test_the_first_complete_one_counts_even_inside_another() -> None:
    assert run(["abcd", "c"], ["abcd"]) == ("ab", True)
    assert run(["abc", "c"], ["abc"]) == ("", True)


def test_without_stop_strings_nothing_is_held() -> None:
    matcher = StopStrings([]).matcher()
    assert matcher.push("anything") == "anything"
    assert not matcher.stopped


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STOPS, TEXT, st.lists(st.integers(0, 30), max_size=6))
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], text: str, places: list[int]) -> None:
    assert run(stops, cut(text, places)) == expected(stops, text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STOPS, TEXT)
def test_exactly_what_may_become_a_stop_string_is_held_back(stops: list[str], text: str) -> None:
    matcher = StopStrings(stops).matcher()
    given_out = ""
    for i, character in enumerate(text, start=1):
        given_out += matcher.push(character)
        if matcher.stopped:
            break
        held = text[len(given_out) : i]
        doubtful = [n for n in range(1, i + 1) if any(stop.startswith(text[i - n : i]) for stop in stops)]
        assert len(held) == max(doubtful, default=0)


@pytest.mark.parametrize("text", ["a" * 200_000, "a" * 4095 + "c" + "a" * 200_000])
def test_adversarial_text_takes_linear_time(text: str) -> None:
    started = time.monotonic()
    assert run(["a" * 4095 + "b"], [text]) == (text, False)
    assert time.monotonic() - started < 5  # quadratic time would be minutes


@pytest.mark.parametrize("pieces", [["one STOP two"], list("one STOP two"), ["one S", "TO", "P", " two"]])
def test_a_stop_string_may_be_kept(pieces: list[str]) -> None:
    assert run(["STOP"], pieces, included=True) == ("one STOP", True)
