"""Calls in Hermes form."""

import pytest
from fakes_output import form_of, read

from gateway.text.output.formats import HERMES
from gateway.text.output.parts import CallArguments, CallStart, Content, Part

WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def hermes(text: str) -> list[Part]:
    return read(form_of(HERMES), text)


def test_text_and_calls_come_in_order_without_the_white_space_between() -> None:
    assert hermes(f"Let me see.\n{WEATHER}\n{WEATHER}\n") == [
        Content("Let me see.\n"),
        CallStart(0, "get_weather"),
        CallArguments(0, '{"city": "Paris"}'),
        CallStart(1, "get_weather"),
        CallArguments(1, '{"city": "Paris"}'),
    ]


def test_text_after_a_call_is_content() -> None:
    assert hermes(f"{WEATHER}\n\nDone. ")[2:] == [Content("Done. ")]


def test_a_forgotten_closing_mark_does_not_matter() -> None:
    assert hermes(WEATHER.removesuffix("</tool_call>")) == hermes(WEATHER)
    assert hermes(WEATHER.removesuffix("</tool_call>") + WEATHER)[2] == CallStart(1, "get_weather")


def test_a_name_that_was_not_offered_is_a_call_all_the_same() -> None:
    assert hermes('<tool_call>{"name": "made_up"}</tool_call>') == [CallStart(0, "made_up"), CallArguments(0, "{}")]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>hello</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>{'name': 'f'}</tool_call>",
        '<tool_call>{"name": "f", "arguments"',
        " <tool_cal",
        "</tool_call> {",
    ],
)
def test_what_is_no_call_is_content_to_the_character(text: str) -> None:
    assert hermes(text) == [Content(text)]


def test_a_call_after_a_broken_one_is_found() -> None:
    assert hermes(f"<tool_call>oh {WEATHER}")[:2] == [Content("<tool_call>oh "), CallStart(0, "get_weather")]
