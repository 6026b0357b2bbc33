"""Tools for chat templates that know none: described in the system's message, in Hermes form.

Calls and results of earlier turns become text of the assistant and of the user. Any model can be asked to call tools in
this way; how well it does so is another matter.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from gateway.text.conversation import ChatMessage, Conversation
from gateway.text.output.hermes import CLOSE, OPEN

_PROMPT = """\
You can call functions. These are their signatures, one in a line:
<tools>
{signatures}
</tools>
To call one, answer with its name and arguments as JSON between these marks:
{open}
{{"name": "<function name>", "arguments": <arguments as a JSON object>}}
{close}
Its result comes in the next message, between <tool_response> marks."""


def without_tools(conversation: Conversation, *, takes_system: bool) -> Conversation:
    """The same conversation in messages of plain text. Not `takes_system`: the first message of the user does."""
    messages = [_plain(message) for message in _joined_results(conversation.messages)]
    if conversation.tools:
        role = "system" if takes_system else "user"
        messages = _with_instructions(messages, role, _instructions(conversation.tools))
    return replace(conversation, messages=messages, tools=())


def _instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    signatures = "\n".join(_json(tool["function"]) for tool in tools)
    return _PROMPT.format(signatures=signatures, open=OPEN, close=CLOSE)


def _with_instructions(messages: list[ChatMessage], role: str, instructions: str) -> list[ChatMessage]:
    """At the beginning: in the first message, where that is of `role`, else in one of their own."""
    if messages and messages[0]["role"] == role:
        content = messages[0]["content"]
        texts = [content, instructions] if role == "system" else [instructions, content]
        return [{**messages[0], "content": "\n\n".join(texts)}, *messages[1:]]
    return [{"role": role, "content": instructions}, *messages]


def _joined_results(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """All results of a turn as one message: many templates insist that user and assistant alternate."""
    joined: list[ChatMessage] = []
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        if is_result:
            results = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in group]
            joined.append({"role": "user", "content": "\n".join(results)})
        else:
            joined += group
    return joined


def _plain(message: ChatMessage) -> ChatMessage:
    if "tool_calls" not in message:
        return message
    calls = [f"{OPEN}\n{_json(call['function'])}\n{CLOSE}" for call in message["tool_calls"]]
    texts = [message["content"], *calls] if message["content"] else calls
    return {"role": message["role"], "content": "\n".join(texts)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
