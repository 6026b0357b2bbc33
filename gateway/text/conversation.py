"""What a chat template makes a prompt of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

ChatMessage = Mapping[str, Any]  # role and content; tool_calls, tool_call_id, name and reasoning_content where they are


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the tools that may be called, and what else templates let a client choose."""

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # such as enable_thinking
    continues: bool = False  # the answer goes on with the last message: the prompt ends where that does

    @property
    def uses_tools(self) -> bool:
        """Now or earlier."""
        return bool(self.tools) or any("tool_calls" in m or m["role"] == "tool" for m in self.messages)

    def with_call_ids(self, rename: Callable[[str], str]) -> Self:
        """The same with other ids of tool calls, and of their results."""
        return replace(self, messages=[_renamed(message, rename) for message in self.messages])


def _renamed(message: ChatMessage, rename: Callable[[str], str]) -> ChatMessage:
    renamed = dict(message)
    if "tool_calls" in message:
        renamed["tool_calls"] = [{**call, "id": rename(call["id"])} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        renamed["tool_call_id"] = rename(message["tool_call_id"])
    return renamed
