"""One call as JSON: members in any order, arguments to the character, and what breaks it."""

import json

import pytest
from fakes_output import form_of, read
from hypothesis import given
from hypothesis import strategies as st
from test_json_value import INDENTS, OBJECTS

from gateway.text.output.formats import HERMES
from gateway.text.output.parser import OutputParser
from gateway.text.output.parts import CallArguments, CallStart, Content, Part


def call(text: str) -> list[Part]:
    return read(form_of(HERMES), "<tool_call>" + text)


@given(OBJECTS, INDENTS, st.permutations(["name", "arguments", "id"]))
def test_arguments_are_what_was_written_wherever_they_stand(
    arguments: dict[str, object], indent: int | None, order: list[str]
) -> None:
    members = {"name": "f", "arguments": arguments, "id": [{"name": "g"}]}
    text = json.dumps({key: members[key] for key in order}, indent=indent)
    start, written = call(text)
    assert start == CallStart(0, "f")
    assert isinstance(written, CallArguments)
    assert json.loads(written.text) == arguments
    assert written.text in text


def test_a_call_begins_with_its_name_and_its_arguments_come_as_they_are_written() -> None:
    parser = OutputParser(form_of(HERMES))
    seen = [
        parser.push(piece) for piece in ('<tool_call>{"name": "f', '", "arguments": ', '{"a"', ': "x', 'y"', "}", "}")
    ]
    assert seen == [
        [],
        [],
        [CallStart(0, "f"), CallArguments(0, '{"a"')],
        [CallArguments(0, ': "x')],
        [CallArguments(0, 'y"')],
        [CallArguments(0, "}")],
        [],
    ]


@pytest.mark.parametrize("written", ['"{\\"a\\": 1}"', '"  {\\"a\\": 1}"', '{"a": 1}'])
def test_arguments_may_be_a_string_with_the_object(written: str) -> None:
    _, arguments = call(f'{{"name": "f", "parameters": {written}}}')
    assert isinstance(arguments, CallArguments)
    assert json.loads(arguments.text) == {"a": 1}


@pytest.mark.parametrize("text", ['{"name": "f"}', '{"name": "f", "arguments": null}'])
def test_no_arguments_are_an_empty_object(text: str) -> None:
    assert call(text) == [CallStart(0, "f"), CallArguments(0, "{}")]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"name": "f", "arguments": 5}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": "{\\"\\ud800\\": 1}"}',
        '{"name": "f", "arguments": "' + "[" * 100_000 + '"}',
        '{"name": 5}',
        '{"name": ["f"]}',
        '{"name": ""}',
        '{"name": "\\ud800"}',
        '{"name": "a b"}',
        '{"name": "' + "x" * 65 + '"}',
        '{"name": "f" "arguments": {}}',
        '{"name": "f",',
        '{{"name": "f"}}',
        "{" * 100_000,
    ],
)
def test_what_is_no_call_is_content_to_the_character(text: str) -> None:
    assert call(text) == [Content("<tool_call>" + text)]


def test_a_call_that_breaks_after_its_beginning_keeps_what_was_sent_and_the_rest_is_content() -> None:
    assert call('{"name": "f", "arguments": {"a": tru}}!') == [
        CallStart(0, "f"),
        CallArguments(0, '{"a": tru'),
        Content("}}!"),
    ]


def test_a_call_that_the_output_ends_in_keeps_what_was_sent() -> None:
    assert call('{"name": "f", "arguments": {"a": 1')[1:] == [CallArguments(0, '{"a": 1')]
