"""Tools for templates that know none."""

import json
from typing import Any

from fakes_output import form_of, read

from gateway.text.conversation import Conversation
from gateway.text.output.formats import HERMES
from gateway.text.output.parts import Call, calls_in
from gateway.text.tool_prompt import without_tools

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("f", "get_weather")
]
SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
ASKED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "1"}


def plain(*messages: dict[str, Any], tools: list[dict[str, Any]] = TOOLS, takes_system: bool = True) -> list[Any]:
    conversation = without_tools(Conversation(messages, tools), takes_system=takes_system)
    assert not conversation.tools
    assert not conversation.uses_tools
    return list(conversation.messages)


def test_the_system_describes_every_tool_in_a_line() -> None:
    system, user = plain(USER)
    assert (system["role"], user) == ("system", USER)
    lines = system["content"].splitlines()
    start, end = lines.index("<tools>"), lines.index("</tools>")
    assert [json.loads(line) for line in lines[start + 1 : end]] == [tool["function"] for tool in TOOLS]


def test_a_system_message_that_is_there_comes_first() -> None:
    system, user = plain(SYSTEM, USER)
    assert system["content"].startswith("Be kind.\n\nYou can call functions.")
    assert user == USER


def test_where_no_system_is_taken_the_user_describes_the_tools() -> None:
    [user] = plain(USER, takes_system=False)
    assert user["role"] == "user"
    assert user["content"].endswith("\n\nHi")
    assert "<tools>" in user["content"]


def test_the_example_of_a_call_is_in_the_form_that_is_read() -> None:
    [system, *_] = plain(USER)
    example = system["content"].replace("<function name>", "f").replace("<arguments as a JSON object>", '{"a": 1}')
    assert calls_in(read(form_of(HERMES), example)) == [Call("f", '{"a": 1}')]


def test_earlier_calls_and_results_are_text() -> None:
    texts = [ASKED, RESULT, {**RESULT, "content": "43"}, {**ASKED, "content": "Again:"}]
    asked, result, again = plain(*texts, tools=[])
    assert asked == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "f", "arguments": {"city": "Zürich"}}\n</tool_call>',
    }
    assert result == {
        "role": "user",
        "content": "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>",
    }
    assert again["content"] == "Again:\n" + asked["content"]


def test_an_earlier_call_reads_as_that_call() -> None:
    [asked] = plain(ASKED, tools=[])
    assert calls_in(read(form_of(HERMES), asked["content"])) == [Call("f", '{"city": "Zürich"}')]
