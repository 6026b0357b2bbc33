"""Calls in Mistral's forms."""

import pytest
from fakes_output import form_of, read

from gateway.text.output.formats import MISTRAL
from gateway.text.output.parts import CallArguments, CallStart, Content, Part

TWO_CALLS = [
    CallStart(0, "f"),
    CallArguments(0, '{"a": 1}'),
    CallStart(1, "get_weather"),
    CallArguments(1, "{}"),
]


def mistral(text: str) -> list[Part]:
    return read(form_of(MISTRAL), text)


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]',
        '[TOOL_CALLS][{"id": "123456789", "name": "f", "arguments": {"a": 1}},{"name": "get_weather"}]\n',
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{}',
        '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]get_weather{}',
        '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}[TOOL_CALLS] get_weather [CALL_ID] 1 [ARGS] {}',
    ],
)
def test_all_generations_of_the_form_are_read(text: str) -> None:
    assert mistral(text) == TWO_CALLS
    assert mistral("So: " + text) == [Content("So: "), *TWO_CALLS]


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [1]",
        "[TOOL_CALLS]{}",
        "[TOOL_CALLS]f[ARGS]",
        "[TOOL_CALLS]f[ARGS][]",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS]" + "f" * 65 + "[ARGS]{}",
        "[TOOL_CALLS] no",
        "[TOOL_",
    ],
)
def test_what_is_no_call_is_content_to_the_character(text: str) -> None:
    assert mistral(text) == [Content(text)]


def test_what_follows_the_calls_is_content() -> None:
    assert mistral('[TOOL_CALLS] [{"name": "f"}, oh]')[2:] == [Content(", oh]")]
    assert mistral('[TOOL_CALLS] [{"name": "f"}] oh')[2:] == [Content("oh")]
