"""The messages of a chat request, checked and turned into what chat templates expect. Text only."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.api.errors import invalid_value, unsupported
from gateway.api.schema import ContentPart, Message, ToolCall


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Raises ApiError for content that is not text, and for what is missing."""
    called = {call.id: call.function.name for message in messages for call in message.tool_calls or []}
    return [_message(message, f"messages[{i}]", called) for i, message in enumerate(messages)]


def _message(message: Message, param: str, called: Mapping[str, str]) -> dict[str, Any]:
    """`called`: the function of each call, by its id. Some templates want to name it with the result."""
    if message.role == "function":
        raise unsupported(f"{param}.role")
    if message.function_call:
        raise unsupported(f"{param}.function_call")
    role = "system" if message.role == "developer" else message.role  # templates know no developers
    made = {"role": role, "content": _content(message, f"{param}.content")}
    name = message.name
    if role == "tool":
        if message.tool_call_id is None:
            raise invalid_value(f"{param}.tool_call_id is missing", f"{param}.tool_call_id")
        made["tool_call_id"] = message.tool_call_id
        name = name or called.get(message.tool_call_id)
    if name is not None:
        made["name"] = name
    if role == "assistant":
        made |= _assistant(message)
    return made


def _assistant(message: Message) -> dict[str, Any]:
    """What only the model says: thoughts and calls."""
    said: dict[str, Any] = {}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        said["reasoning_content"] = reasoning
    if message.tool_calls:
        said["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return said


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _arguments(text: str) -> dict[str, Any] | str:
    """Templates expect an object. What is none, such as a call that broke off, they get as it is."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return text


def _content(message: Message, param: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise invalid_value(f"{param} is missing", param)
    return "\n".join(_text(part, f"{param}[{i}]") for i, part in enumerate(message.content))


def _text(part: ContentPart, param: str) -> str:
    if part.type != "text":
        raise unsupported(f"{param}.type")
    if part.text is None:
        raise invalid_value(f"{param}.text is missing", f"{param}.text")
    return part.text
