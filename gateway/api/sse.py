"""A streamed answer: the grammar of its chunks, as OpenAI's clients parse it, over sse-starlette.

The grammar: the opening chunks of all choices in order of their index; text; one chunk with the finish reason per
choice; the usage chunk, if asked for; `[DONE]`. Comments keep the connection alive while nothing comes. No `id:` lines:
after one, clients would take a comment's blank line for an empty event.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import msgspec
from msgspec import UNSET
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from gateway.api.choices import SAID_SIZE, Choice, Choices, GenerationFailed
from gateway.api.dialect import Dialect, Letterhead
from gateway.api.errors import generation_failed
from gateway.heavy_work import beside
from gateway.text.output.parts import Part

DONE = b"data: [DONE]\n\n"
_EVENT = b"data: %b\n\n"

_FEW_TOKENS = 8  # hardly any chunk has more
_HEADERS = {"cache-control": "no-cache"}  # the others are sse-starlette's: content-type, x-accel-buffering


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """What is to be streamed, and how."""

    choices: Choices
    dialect: Dialect
    letterhead: Letterhead
    include_usage: bool
    include_trace: bool
    always_usage: bool = False  # in every chunk, as far as it is known

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the events of the answer, those together that come together."""
        opened = False
        try:
            async with aclosing(self.choices.parts()) as parts:
                async for choice, some in parts:
                    opening = b"" if opened else self._opening()
                    if choice.num_said <= _FEW_TOKENS:
                        progress = self._progress(choice, some)
                    else:  # those of a prompt
                        progress = await beside(SAID_SIZE * choice.num_said, partial(self._progress, choice, some))
                    if opening or progress:
                        yield opening + progress
                    opened = True
            if self.include_usage:
                yield self._usage()
        except GenerationFailed as error:
            yield _EVENT % msgspec.json.encode(generation_failed(error.failure).body)
        yield DONE

    def _opening(self) -> bytes:
        """Sent with the first token, not at admission: clients measure the time to the first token by it."""
        openings = [self.dialect.opening(choice.index) for choice in self.choices]
        chunks = [opening for opening in openings if opening is not None]
        return b"".join(self._chunk(chunk, is_first=chunk is chunks[0]) for chunk in chunks)

    def _progress(self, choice: Choice, parts: list[Part]) -> bytes:
        """The tokens go with the first part that their text is in; those of no text with the last chunk."""
        said = choice.said() if parts or choice.finish_reason is not None else []
        events = b""
        for part in parts:
            events += self._chunk(self.dialect.part(choice.index, part, said))
            said = []
        if choice.finish_reason is not None:
            is_last = self.choices.finished and not self.include_usage
            events += self._chunk(self.dialect.end(choice.index, choice.finish_reason, said), is_last=is_last)
        return events

    def _chunk(self, choice: object, *, is_first: bool = False, is_last: bool = False) -> bytes:
        usage = self.choices.usage() if self.always_usage else None if self.include_usage else UNSET
        x_sched = self.choices.traces() if is_last and self.include_trace else UNSET
        prompt_token_ids = self.dialect.prompt_token_ids if is_first else UNSET
        return _EVENT % self.letterhead.write([choice], usage, x_sched, prompt_token_ids)

    def _usage(self) -> bytes:
        x_sched = self.choices.traces() if self.include_trace else UNSET
        return _EVENT % self.letterhead.write([], self.choices.usage(), x_sched)


class StreamResponse(EventSourceResponse):
    """Sends events, and calls `on_end` as soon as nobody listens any more: then nobody needs more of them."""

    def __init__(self, events: AsyncGenerator[bytes, None], ping_interval_s: float, on_end: Callable[[], None]) -> None:
        super().__init__(
            events,  # for the library; `_stream_response` reads them
            headers=_HEADERS,
            ping=ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
        )
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here and not in the generator: one that was never started has no end.
            self._on_end()

    async def _stream_response(self, send: Send) -> None:
        """Overrides sse-starlette's: what that does for each event beside sending it takes as long as sending it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        async with self._send_lock:  # no ping after the end
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})
