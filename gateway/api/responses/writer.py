"""Writes a response: from the parts of an output to its items, and to the events that tell of them as they come.

The grammar: created, in_progress; for each item added, its deltas, done; then completed, incomplete, failed or
cancelled. Items keep their ids from the first event to the last, and one is done before the next is added.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from gateway.api.answers import Finish, Usage
from gateway.api.logprob_records import TokenLogprob, chat_logprobs
from gateway.api.responses.chat_request import new_id
from gateway.api.responses.records import (
    Content,
    Event,
    Incomplete,
    InputDetails,
    Item,
    ItemStatus,
    OutputDetails,
    Response,
    ResponseError,
    ResponseStatus,
    ResponseUsage,
)
from gateway.generation import Failure
from gateway.text.output.parts import CallArguments, CallStart, Part, Reasoning
from gateway.text.output.parts import Content as ContentPart
from gateway.text.token_log import Said


@dataclass(slots=True)
class _Open:
    """The item that is being written."""

    type: str  # message, reasoning or function_call
    id: str
    call: Item | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ResponseWriter:
    """One response, from its first event to its last. The caller sends the events; the writer knows no stream."""

    def __init__(self, response: Response, *, logprobs: bool) -> None:
        self.response = response
        self._logprobs = logprobs
        self._output: list[Item] = []
        self._open: _Open | None = None
        self._number = 0

    def opening(self) -> Iterator[Event]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def parts(self, parts: Sequence[Part], said: Sequence[Said]) -> Iterator[Event]:
        """The tokens go with the first text that they are in; those of marks and thoughts with none."""
        length = sum(len(part.text) for part in parts if isinstance(part, ContentPart))
        logprobs = chat_logprobs(_last(said, length)).content if self._logprobs else []
        for part in parts:
            yield from self._part(part, logprobs)
            if isinstance(part, ContentPart):
                logprobs = []

    def finished(self, reason: Finish, usage: Usage) -> Iterator[Event]:
        """The output is all there: whole, or as long as it may be."""
        whole = reason != "length"
        if self._open is None and not self._output:
            yield from self._begin("message")  # nothing was said; clients expect somebody to have said it
        yield from self._close("completed" if whole else "incomplete")
        incomplete = None if whole else Incomplete()
        yield self._end("completed" if whole else "incomplete", incomplete_details=incomplete, usage=_usage(usage))

    def failed(self, failure: Failure) -> Iterator[Event]:
        yield from self._close("incomplete")
        error = ResponseError(failure.message, "invalid_prompt" if failure.by_request else "server_error")
        yield self._end("failed", error=error)

    def cancelled(self) -> Iterator[Event]:
        yield from self._close("incomplete")
        yield self._end("cancelled")

    # ------------------------------------------------------------------------------------------ items

    def _part(self, part: Part, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        match part:
            case ContentPart(text):
                yield from self._begin("message")
                yield self._delta("response.output_text.delta", text, content_index=0, logprobs=logprobs)
                self._current.logprobs += logprobs
            case Reasoning(text):
                yield from self._begin("reasoning")
                yield self._delta("response.reasoning_text.delta", text, content_index=0)
            case CallStart(_, name):
                yield from self._close("completed")
                yield from self._begin("function_call", name)
            case CallArguments(_, text):
                yield self._delta("response.function_call_arguments.delta", text)

    def _begin(self, kind: str, name: str = "") -> Iterator[Event]:
        """Open an item, unless one of the kind is open already."""
        if self._open is not None and self._open.type == kind:
            return
        yield from self._close("completed")
        self._open = _Open(kind, new_id(kind))
        if kind == "function_call":
            call_id = "call_" + secrets.token_hex(12)
            self._open.call = Item(
                type=kind, id=self._open.id, status="in_progress", call_id=call_id, name=name, arguments=""
            )
        yield self._event(
            "response.output_item.added", output_index=self._index, item=self._item("in_progress", is_new=True)
        )
        if kind != "function_call":
            yield self._of_item("response.content_part.added", content_index=0, part=self._content(is_new=True))

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if self._open is None:
            return
        text = self._open.text
        match self._open.type:
            case "message":
                logprobs = self._open.logprobs
                yield self._of_item("response.output_text.done", content_index=0, text=text, logprobs=logprobs)
            case "reasoning":
                yield self._of_item("response.reasoning_text.done", content_index=0, text=text)
            case _:
                assert self._open.call is not None
                name = self._open.call.name
                yield self._of_item("response.function_call_arguments.done", name=name, arguments=text)
        if self._open.type != "function_call":
            yield self._of_item("response.content_part.done", content_index=0, part=self._content())
        item = self._item(status)
        yield self._event("response.output_item.done", output_index=self._index, item=item)
        self._output.append(item)
        self._open = None
        self.response = msgspec.structs.replace(self.response, output=list(self._output))

    @property
    def _current(self) -> _Open:
        assert self._open is not None, "no item is open"
        return self._open

    @property
    def _index(self) -> int:
        return len(self._output)

    def _item(self, status: ItemStatus, *, is_new: bool = False) -> Item:
        current = self._current
        if current.call is not None:
            return msgspec.structs.replace(current.call, status=status, arguments=current.text)
        content = [] if is_new else [self._content()]
        if current.type == "reasoning":
            return Item(type="reasoning", id=current.id, status=status, summary=[], content=content)
        return Item(type="message", id=current.id, status=status, role="assistant", content=content)

    def _content(self, *, is_new: bool = False) -> Content:
        text = "" if is_new else self._current.text
        if self._current.type == "reasoning":
            return Content(type="reasoning_text", text=text)
        logprobs = [] if is_new else self._current.logprobs
        return Content(type="output_text", text=text, annotations=[], logprobs=logprobs)

    # ------------------------------------------------------------------------------------------ events

    def _delta(self, kind: str, text: str, **fields: Any) -> Event:
        self._current.pieces.append(text)
        return self._of_item(kind, delta=text, **fields)

    def _of_item(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, output_index=self._index, item_id=self._current.id, **fields)

    def _end(self, status: ResponseStatus, **fields: Any) -> Event:
        self.response = msgspec.structs.replace(self.response, status=status, **fields)
        return self._event(f"response.{status}", response=self.response)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = Event(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event


def _usage(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(0 if details is UNSET else details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )


def _last(said: Sequence[Said], length: int) -> Sequence[Said]:
    """The tokens that so many characters at the end of their text are made of."""
    if not length:
        return []
    rest, first = length, len(said)
    while rest > 0 and first > 0:
        first -= 1
        end = said[first + 1].offset if first + 1 < len(said) else said[first].offset + _characters(said[first].piece)
        rest -= end - said[first].offset
    while first > 0 and said[first - 1].offset == said[first].offset:  # in the middle of the same character
        first -= 1
    return said[first:]


def _characters(piece: bytes) -> int:
    return max(1, len(piece.decode(errors="ignore")))
