"""What a request for a response comes to as one for a chat: items become messages, flat tools become nested ones."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from gateway.api.errors import ApiError, invalid_value, unsupported
from gateway.api.responses.records import Content, FunctionTool, Item, ResponsesRequest, TextFormat, ToolReference
from gateway.api.schema import (
    CalledFunction,
    ChatRequest,
    JsonSchemaFormat,
    Message,
    ResponseFormat,
    SamplingRequest,
    ToolCall,
)
from gateway.api.tools import (
    AllowedTools,
    AllowedToolsChoice,
    Function,
    FunctionChoice,
    NamedFunction,
    Tool,
    ToolChoice,
)

_ID_PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
_OTHER_NAMES = {  # of a chat's fields, for those who asked for a response
    "messages": "input",
    "response_format.json_schema": "text.format",
    "max_completion_tokens": "max_output_tokens",
}


def new_id(item_type: str) -> str:
    return _ID_PREFIXES.get(item_type, "item_") + secrets.token_hex(16)


def input_items(body: ResponsesRequest, find: Callable[[str], Item | None]) -> list[Item]:
    """The items of a request, each with an id. `find`: what is kept under an id.

    Raises ApiError for those that cannot be served.
    """
    items = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input or []
    items = [_referenced(item, f"input[{i}]", find) for i, item in enumerate(items)]
    for i, item in enumerate(items):
        _check(item, f"input[{i}]")
    return [_kept(item) for item in items]


def as_chat(body: ResponsesRequest, items: Sequence[Item]) -> ChatRequest:
    """The chat that has `items` as its messages. Raises ApiError for what no chat can have."""
    if not items:
        raise invalid_value("input is missing", "input")
    shared = {field: getattr(body, field) for field in SamplingRequest.__struct_fields__}
    shared |= {"stream_options": None, "max_tokens": None}
    instructions = [Message(role="system", content=body.instructions)] if body.instructions else []
    if body.text is not None and body.text.format is not None:
        shared["response_format"] = _response_format(body.text.format)
    return ChatRequest(
        **shared,
        messages=[*instructions, *_messages(items)],
        max_completion_tokens=body.max_output_tokens,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or [])],
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        chat_template_kwargs=body.chat_template_kwargs,
        logprobs=body.num_logprobs is not None,
        top_logprobs=body.num_logprobs,
    )


def in_our_words(error: ApiError) -> ApiError:
    """An error of a chat, about a field of the request that was made."""
    detail = error.body["error"]
    for chats, ours in _OTHER_NAMES.items():
        if detail["param"] is not None and detail["param"].startswith(chats):
            detail["message"] = detail["message"].replace(chats, ours)
            detail["param"] = ours
    return error


# ---------------------------------------------------------------------------- items


def _referenced(item: Item, param: str, find: Callable[[str], Item | None]) -> Item:
    """What a reference stands for; another item as it is. Raises ApiError."""
    if item.type != "item_reference":
        return item
    if not isinstance(item.id, str):
        raise invalid_value(f"{param}.id is missing", f"{param}.id")
    found = find(item.id)
    if found is None:
        raise ApiError(404, f"Item with id '{item.id[:100]}' not found.", code="not_found", param=f"{param}.id")
    return found


def _check(item: Item, param: str) -> None:
    match item.type:
        case "message":
            if item.role is UNSET:
                raise invalid_value(f"{param}.role is missing", f"{param}.role")
            _text(item.content, f"{param}.content")
        case "function_call":
            for field in ("call_id", "name", "arguments"):
                if getattr(item, field) is UNSET:
                    raise invalid_value(f"{param}.{field} is missing", f"{param}.{field}")
        case "function_call_output":
            if item.call_id is UNSET:
                raise invalid_value(f"{param}.call_id is missing", f"{param}.call_id")
            _text(item.output, f"{param}.output")
        case "reasoning":
            _text(item.content or "", f"{param}.content")
        case _:
            raise unsupported(f"{param}.type")


def _kept(item: Item) -> Item:
    """As it is listed afterwards: with an id and a status, and content in parts."""
    content = item.content
    if isinstance(content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        annotations: list[Any] = []
        content = [Content(type=kind, text=content, annotations=annotations if kind == "output_text" else UNSET)]
    summary = item.summary or [] if item.type == "reasoning" else UNSET
    status = item.status or "completed"
    return msgspec.structs.replace(
        item, id=item.id or new_id(item.type), status=status, content=content, summary=summary
    )


def _text(content: Any, param: str) -> str:
    """Raises ApiError for content that is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_value(f"{param} is missing", param)
    for i, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "reasoning_text", "text"):
            raise unsupported(f"{param}[{i}].type")
        if part.text is UNSET:
            raise invalid_value(f"{param}[{i}].text is missing", f"{param}[{i}].text")
    return "\n".join(part.text for part in content)


def _messages(items: Iterable[Item]) -> list[Message]:
    """Thoughts, text and calls that the model said one after the other are one message."""
    messages: list[Message] = []
    for i, item in enumerate(items):
        message = _message(item, f"input[{i}]")
        if message.role == "assistant" and messages and messages[-1].role == "assistant":
            messages[-1] = _together(messages[-1], message)
        else:
            messages.append(message)
    return messages


def _message(item: Item, param: str) -> Message:
    match item.type:
        case "function_call":
            call = ToolCall(str(item.call_id), CalledFunction(str(item.name), str(item.arguments)))
            return Message(role="assistant", tool_calls=[call])
        case "function_call_output":
            return Message(role="tool", tool_call_id=str(item.call_id), content=_text(item.output, param))
        case "reasoning":
            return Message(role="assistant", reasoning=_text(item.content or "", param))
        case _:
            assert item.role is not UNSET, item
            return Message(role=item.role, content=_text(item.content, param))


def _together(first: Message, second: Message) -> Message:
    return Message(
        role="assistant",
        content="\n".join(text for text in (first.content, second.content) if isinstance(text, str)) or None,
        reasoning="\n".join(filter(None, (first.reasoning, second.reasoning))) or None,
        tool_calls=[*(first.tool_calls or []), *(second.tool_calls or [])] or None,
    )


# ---------------------------------------------------------------------------- tools and formats


def _tool(tool: FunctionTool, param: str) -> Tool:
    if tool.type != "function":
        raise unsupported(f"{param}.type")
    if tool.name is None:
        raise invalid_value(f"{param}.name is missing", f"{param}.name")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return Tool("function", function)


def _tool_choice(choice: Any) -> ToolChoice | None:
    if not isinstance(choice, ToolReference):
        return choice  # type: ignore[no-any-return]
    if choice.type == "function":
        return FunctionChoice(NamedFunction(_name(choice, "tool_choice")))
    tools = [FunctionChoice(NamedFunction(_name(tool, "tool_choice.tools"))) for tool in choice.tools]
    if not tools:
        raise invalid_value("tool_choice.tools is empty", "tool_choice.tools")
    return AllowedToolsChoice(AllowedTools(choice.mode or "auto", tools))


def _name(reference: ToolReference, param: str) -> str:
    if reference.name is None:
        raise invalid_value(f"{param}.name is missing", param)
    return reference.name


def _response_format(asked: TextFormat) -> ResponseFormat:
    schema = JsonSchemaFormat(asked.name, asked.description, asked.schema, asked.strict)
    return ResponseFormat(asked.type, schema if asked.type == "json_schema" else None)
