"""Outputs of every form: however they are cut, nothing is lost, nothing raises, and time is linear."""

import sys
from collections.abc import Callable

import pytest
from fakes_output import NAMES, cut_texts, form_of, read
from hypothesis import given
from hypothesis import strategies as st

from gateway.text.output.formats import FORMATS, HERMES
from gateway.text.output.parser import PLAIN, OutputForm, OutputParser
from gateway.text.output.parts import Call, CallArguments, CallStart, Content, Reasoning, calls_in, joined

FORMS = [
    OutputForm(tool_format, names=NAMES, one_call=one_call, reasons=reasons, reasoning_opened=opened)
    for tool_format in FORMATS.values()
    for one_call in (False, True)
    for reasons, opened in ((False, False), (True, False), (True, True))
]
FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
]
FRAGMENTS += [
    '{"name": "f", "arguments": ',
    '{"name": "f"',
    '"parameters": ',
    '{"a": "é😀"}',
    "{}",
    "{",
    "}",
    "}; ",
    "[",
    "]",
]
FRAGMENTS += ["f", " ", "\n", ",", ":", '"', "\\", "\\ud83d", "tru", "1e5", "<", "<tool", "[TOOL", "text"]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@given(st.sampled_from(FORMS), cut_texts(FRAGMENTS))
def test_however_a_text_is_cut_its_parts_are_the_same(form: OutputForm, cut: tuple[str, list[int]]) -> None:
    text, cuts = cut
    assert read(form, text, cuts) == read(form, text) == read(form, text, range(len(text)))


@given(st.sampled_from(FORMS), cut_texts(FRAGMENTS))
def test_without_a_call_or_thoughts_all_text_is_content(form: OutputForm, cut: tuple[str, list[int]]) -> None:
    text, cuts = cut
    parts = read(form, text, cuts)
    if all(isinstance(part, Content) for part in parts) and not form.reasoning_opened and "<think>" not in text:
        assert joined(parts, Content) == text


@given(st.sampled_from(FORMS), cut_texts(FRAGMENTS))
def test_calls_are_numbered_and_arguments_follow_their_call(form: OutputForm, cut: tuple[str, list[int]]) -> None:
    parts = read(form, *cut)
    starts = [part.index for part in parts if isinstance(part, CallStart)]
    assert starts == list(range(len(starts)))
    for before, part in zip([None, *parts], parts, strict=False):
        if isinstance(part, CallArguments):
            assert isinstance(before, CallStart)
            assert before.index == part.index
    assert len(starts) <= 1 or not form.one_call


@given(cut_texts(FRAGMENTS))
def test_a_plain_output_is_content_to_the_character(cut: tuple[str, list[int]]) -> None:
    text, cuts = cut
    assert read(PLAIN, text, cuts) == ([Content(text)] if text else [])


def test_where_one_call_was_wanted_it_completes_the_output() -> None:
    parser = OutputParser(form_of(HERMES, one_call=True))
    assert calls_in(parser.push(CALL[:50])) == [Call("f", '{"a": 1}')]
    assert parser.complete
    assert parser.push(CALL[50:] + CALL + "text") == parser.flush() == []


HOSTILE: dict[str, Callable[[int], str]] = {
    "marks": lambda n: "<tool_call>" * n,
    "beginnings of marks": lambda n: "<tool_cal[TOOL_CALL" * n,
    "calls that break": lambda n: '<tool_call>{"name": "f", "arguments": {"a": x' * n,
    "calls": lambda n: CALL * n,
    "mistral's calls": lambda n: "[TOOL_CALLS] [" + '{"name": "f", "arguments": {}},' * n,
    "objects": lambda n: '{"name": "f", "parameters": {}};' * n,
    "a deep value": lambda n: '<tool_call>{"x":' + "[" * 10 * n,
    "a long string": lambda n: '<tool_call>{"arguments": {"a": "' + 'x\\"' * 10 * n,
    "a long number": lambda n: '{"name": ' + "1" * 20 * n,
    "white space": lambda n: "<think>" + "\n " * 20 * n,
    "space before a call": lambda n: " " * 20 * n + "<tool_call>" + " " * 20 * n,
    "a long name": lambda n: "[TOOL_CALLS]" + "f" * 20 * n,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS.keys())
def test_a_lot_of_hostile_output_is_read_and_nothing_raises(tool_format: object, hostile: Callable[[int], str]) -> None:
    form = OutputForm(tool_format, names=NAMES, reasons=True)  # type: ignore[arg-type]
    text = hostile(100_000 // len(hostile(100)) * 100)
    parts = read(form, text, range(0, len(text), 7))
    assert sum(len(getattr(part, "text", "")) for part in parts) <= len(text)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_twice_the_output_is_twice_the_work(hostile: Callable[[int], str]) -> None:
    for tool_format in FORMATS.values():
        form = OutputForm(tool_format, names=NAMES, reasons=True)
        assert steps(form, hostile(200)) < 2.2 * steps(form, hostile(100)) + 100


def steps(form: OutputForm, text: str) -> int:
    """Lines of Python that reading `text`, character by character, takes."""
    count = 0

    def trace(*_: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        parser = OutputParser(form)
        for character in text:
            parser.push(character)
        parser.flush()
    finally:
        sys.settrace(before)
    return count


def test_what_is_kept_back_is_never_longer_than_a_mark() -> None:
    form = OutputForm(HERMES, names=NAMES, reasons=True)
    parser, text = OutputParser(form), "Some <tool_ca text < and <tool_c" * 50
    shown = 0
    for i, character in enumerate(text, start=1):
        shown += sum(len(part.text) for part in parser.push(character) if isinstance(part, Content | Reasoning))
        assert i - shown < len("<tool_call>")
