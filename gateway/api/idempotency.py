"""Idempotency keys: a request that is sent again joins the one that runs, or gets the same answer once more.

Without one, a client whose connection broke has no choice but to let the server generate everything again. Only good
answers are kept, and only so much of them: what is too old or too much is forgotten, oldest first.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.accounts import Clock
from gateway.api.body import read_body
from gateway.api.errors import STREAM_FAILED, ApiError
from gateway.api.keys import account_of
from gateway.api.respond import unless_disconnected

HEADER = "idempotency-key"
REPLAYED = "idempotent-replayed"
GRACE_S = 10.0  # that an answer goes on without anybody listening, until its client comes back


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is remembered."""

    answer_bytes: int = 2**20
    total_bytes: int = 16 * 2**20
    answers: int = 1000
    age_s: float = 600.0


_SANE_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NOT_KEPT = {408, 429, 499}  # and all of 500 and more: the next try may end otherwise


class Recording:
    """An answer in the making: what the application sent so far, for whoever listens."""

    def __init__(self, fingerprint: bytes, scope: Scope, started: float, most_bytes: int) -> None:
        self.fingerprint = fingerprint
        self.scope = scope
        self.started = started
        self.size = 0
        self.status = 0
        self.is_whole = True  # one that grew too long is no recording any more, only a pipe
        self.abandoned = asyncio.Event()
        self._most_bytes = most_bytes
        self._messages: list[Message] = []
        self._num_dropped = 0
        self._done = False
        self._failure: Exception | None = None
        self._positions: dict[object, int] = {}
        self._changed = asyncio.Event()
        self._grace: asyncio.TimerHandle | None = None

    async def add(self, message: Message) -> None:
        """The application's next message. Waits for the listeners where not all can be remembered."""
        self.status = message.get("status", self.status)
        self.size += len(message.get("body", b""))
        self._messages.append(message)
        self._notify()
        if self.size > self._most_bytes:
            self.is_whole = False
            while self._positions and min(self._positions.values()) < self._end:
                await self._changed.wait()
            self._num_dropped = self._end
            self._messages.clear()

    def end(self, failure: Exception | None) -> None:
        self._done, self._failure = True, failure
        self._notify()

    @contextmanager
    def listener(self) -> Iterator[object]:
        """Somebody who will listen, from the first message on. An answer without any is abandoned after a while."""
        assert self.is_whole, "its beginning is gone"
        listener = object()
        self._positions[listener] = 0
        self._cancel_grace()
        try:
            yield listener
        finally:
            del self._positions[listener]
            self._notify()
            if not self._positions and not self._done:
                self._grace = asyncio.get_running_loop().call_later(GRACE_S, self.abandoned.set)

    async def messages(self, listener: object) -> AsyncIterator[Message]:
        """All of them. Raises what the application raised."""
        while True:
            while (position := self._positions[listener]) < self._end:
                yield self._messages[position - self._num_dropped]
                self._positions[listener] = position + 1
                self._notify()
            if self._done:
                break
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def _end(self) -> int:
        return self._num_dropped + len(self._messages)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _cancel_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None


class Idempotency:
    """Middleware for requests that carry the header."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, bounds: Bounds = Bounds(), clock: Clock = time.monotonic
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._bounds = bounds
        self._clock = clock
        self._recordings: OrderedDict[tuple[str, str], Recording] = OrderedDict()  # by account and key; oldest first
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get(HEADER)
        if key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            recording, is_new = await self._recording(key, Request(scope, receive))
            with recording.listener() as listener:
                messages = recording.messages(listener)
                await unless_disconnected(receive, _play(messages, scope, send, None if is_new else recording.scope))
        except ApiError as error:
            await error.response()(scope, receive, send)
        except ClientDisconnect:
            return

    async def _recording(self, key: str, request: Request) -> tuple[Recording, bool]:
        """The answer to this request, and whether it begins now. Raises ApiError, ClientDisconnect."""
        if not _SANE_KEY.fullmatch(key):
            raise ApiError(400, f"{HEADER} needs 1 to 255 printable characters.", code="invalid_idempotency_key")
        body = await read_body(request, self._max_body_bytes)
        fingerprint = hashlib.sha256(request.url.path.encode() + b"\0" + body).digest()
        name = (account_of(request).name, key)
        self._forget_old()
        found = self._recordings.get(name)
        if found is None or not found.is_whole:  # a client that lost such a one can only have a new one
            return self._begin(name, fingerprint, request.scope, body), True
        if found.fingerprint != fingerprint:
            raise ApiError(
                400, f"This {HEADER} came with another request before.", code="idempotency_key_reused", param=HEADER
            )
        return found, False

    def _begin(self, name: tuple[str, str], fingerprint: bytes, scope: Scope, body: bytes) -> Recording:
        recording = Recording(fingerprint, scope, self._clock(), self._bounds.answer_bytes)
        self._recordings.pop(name, None)  # so that the new one is the newest
        self._recordings[name] = recording
        task = asyncio.ensure_future(self._run(name, recording, body))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return recording

    async def _run(self, name: tuple[str, str], recording: Recording, body: bytes) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await recording.abandoned.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await recording.add(message)
            if not recording.is_whole:
                self._forget(name, recording)

        failure: Exception | None = None
        try:
            await self._app(recording.scope, receive, send)
        except Exception as error:  # whoever listens reports it
            failure = error
        recording.end(failure)
        failed = failure or recording.status >= 500 or STREAM_FAILED in recording.scope
        if failed or recording.abandoned.is_set() or recording.status in _NOT_KEPT:
            self._forget(name, recording)

    def _forget(self, name: tuple[str, str], recording: Recording) -> None:
        if self._recordings.get(name) is recording:
            del self._recordings[name]

    def _forget_old(self) -> None:
        bounds, now = self._bounds, self._clock()
        total = sum(recording.size for recording in self._recordings.values())
        while self._recordings:
            oldest = next(iter(self._recordings.values()))
            fits = total <= bounds.total_bytes and len(self._recordings) < bounds.answers
            if fits and now - oldest.started <= bounds.age_s:
                return
            total -= oldest.size
            self._recordings.popitem(last=False)


async def _play(messages: AsyncIterator[Message], scope: Scope, send: Send, first: Scope | None) -> None:
    """Send `messages`; `first` is the request that they answered already, if this is another."""
    async for message in messages:
        copied = dict(message)
        if message["type"] == "http.response.start":
            copied["headers"] = list(message["headers"])  # the middleware around adds this request's own
            if first is not None:
                scope["route"] = first.get("route")
                MutableHeaders(scope=copied)[REPLAYED] = "true"
        await send(copied)
