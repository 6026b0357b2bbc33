"""JSON values followed through pieces, against the library that reads them whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text.output.json_value import JsonValue

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=4), JSON, max_size=4)
INDENTS = st.sampled_from([None, 0, 2])
NOISE = st.text(alphabet='{}[]",:\\u0a1-.eEtrufalsn \n\x01é', max_size=14).map(lambda text: "{" + text)


def follow(text: str, size: int = 10**9) -> tuple[str, int]:
    """The verdict, and how much of `text` belongs to the value, pushed in pieces of `size`."""
    value, taken = JsonValue(), 0
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        end = value.scan(piece, 0)
        taken += end
        if end < len(piece):
            break
    return value.verdict, taken


def library_reads(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(OBJECTS, INDENTS, st.booleans(), st.integers(1, 5))
def test_an_object_ends_with_its_last_character(
    value: dict[str, object], indent: int | None, ascii_only: bool, size: int
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert follow(text + "} more", size) == ("complete", len(text))


@given(NOISE, st.integers(1, 3))
def test_what_is_complete_is_what_the_library_reads(text: str, size: int) -> None:
    verdict, taken = follow(text, size)
    if verdict == "complete":
        assert library_reads(text[:taken])
    else:
        assert not any(library_reads(text[:end]) for end in range(len(text) + 1))


@given(OBJECTS, st.data())
def test_every_beginning_of_a_value_is_open(value: dict[str, object], data: st.DataObject) -> None:
    text = json.dumps(value)
    end = data.draw(st.integers(0, len(text) - 1))
    assert follow(text[:end], 2) == ("open", end)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("{'a': 1}", 1),
        ('{"a" 1}', 5),
        ('{"a": 01}', 8),
        ('{"a": tru}', 9),
        ('{"a": 1,}', 8),
        ('{"a": "\n"}', 7),
        ('{"a": "\\x"}', 8),
        ('{"a": "\\u12g4"}', 11),
        ('{"a": [1}', 8),
        ("{,", 1),
        ("]", 0),
        ("[٣]", 1),
    ],
)
def test_a_value_breaks_at_the_first_character_that_it_cannot_have(text: str, good: int) -> None:
    assert follow(text) == follow(text, 1) == ("broken", good)


def test_a_number_or_word_alone_ends_with_what_follows() -> None:
    assert follow("-1.5e3,") == ("complete", 6)
    assert follow("null}") == ("complete", 4)
    assert follow("12") == ("open", 2)


def test_no_depth_of_nesting_hurts() -> None:
    assert follow("[" * 1_000_000) == ("open", 1_000_000)
    assert follow('{"a":' * 100_000 + "1" + "}" * 100_000, 1000) == ("complete", 600_001)
