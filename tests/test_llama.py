"""Calls in Llama 3 form."""

import pytest
from fakes_output import form_of, read

from gateway.text.output.formats import LLAMA
from gateway.text.output.parts import CallArguments, CallStart, Content, Part


def llama(text: str) -> list[Part]:
    return read(form_of(LLAMA), text)


@pytest.mark.parametrize("tag", ["", "<|python_tag|>", " \n"])
def test_an_answer_that_is_a_call_is_one_with_or_without_the_tag(tag: str) -> None:
    call = '{"name": "f", "parameters": {"a": [1, 2]}}'
    assert llama(tag + call) == [CallStart(0, "f"), CallArguments(0, '{"a": [1, 2]}')]


def test_several_calls_have_semicolons_between_them() -> None:
    text = '{"name": "f", "parameters": {}}; {"type": "function", "name": "get_weather", "parameters": {"x": 1}}'
    assert [part.name for part in llama(text) if isinstance(part, CallStart)] == ["f", "get_weather"]


def test_text_before_the_tag_is_content() -> None:
    assert llama('Well: <|python_tag|>{"name": "f"}') == [Content("Well: "), CallStart(0, "f"), CallArguments(0, "{}")]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 7}',
        '{"answer": 42}',
        '{"name": "f", "parameters": [1]}',
        'Use {"name": "f", "parameters": {}}',
        '<|python_tag|>brave_search.call(query="x")',
        "  {",
    ],
)
def test_json_and_code_that_call_no_function_are_content(text: str) -> None:
    assert llama(text) == [Content(text)]


def test_what_follows_a_call_is_content() -> None:
    assert llama('{"name": "f"} ok')[2:] == [Content("ok")]
    assert llama('{"name": "f"}; ok')[2:] == [Content("; ok")]
