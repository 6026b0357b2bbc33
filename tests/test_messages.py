"""Messages on their way to the template."""

import json
from typing import Any

import pytest

from gateway.api.errors import ApiError
from gateway.api.messages import for_template
from gateway.api.schema import decode_chat

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def made(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return for_template(decode_chat(json.dumps({"messages": messages}).encode()).messages)


def test_a_turn_with_tools_keeps_its_calls_and_results() -> None:
    assert made(
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
    ) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
    ]


def test_a_result_has_the_name_that_the_client_gave_it_or_that_was_called() -> None:
    result = {"role": "tool", "content": "42"}
    _, *results = made(
        {"role": "assistant", "tool_calls": [CALL]},
        {**result, "tool_call_id": "call_1", "name": "g"},
        {**result, "tool_call_id": "call_2"},
    )
    assert [result.get("name") for result in results] == ["g", None]


@pytest.mark.parametrize("text", ['{"a": 1', "[1]", "no", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100_000])
def test_arguments_that_are_no_object_stay_what_they_are(text: str) -> None:
    [message] = made({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": text}}]})
    assert message["tool_calls"][0]["function"]["arguments"] == text


def test_no_arguments_are_an_empty_object() -> None:
    [message] = made({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]})
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_of_earlier_turns_have_one_name_for_the_template(name: str) -> None:
    assert made({"role": "assistant", "content": "Yes", name: "Hm"}) == [
        {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    ]


def test_only_the_assistant_thinks_and_calls() -> None:
    assert made({"role": "user", "content": "x", "reasoning": "Hm", "tool_calls": [CALL], "tool_call_id": "1"}) == [
        {"role": "user", "content": "x"}
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": "f"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls[0].type"),
    ],
)
def test_broken_turns_with_tools_are_refused_by_place(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        made(message)
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)
