"""The tokens of one job on their way to a client: filled by the engine's hand-over, awaited on the loop."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from gateway.generation import Chunk


class JobStream:
    """Lives on the event loop. Holds token ids only, so a client that reads slowly costs little."""

    def __init__(self, on_finish: Callable[["JobStream"], None], on_abort: Callable[["JobStream"], None]) -> None:
        self._on_finish = on_finish
        self._on_abort = on_abort
        self._chunks: deque[Chunk] = deque()
        self._reader: asyncio.Future[Chunk] | None = None  # the last that was asked for
        self._ended = False

    def next(self) -> Awaitable[Chunk]:
        """A future, not a coroutine: nobody needs a task to await it beside others."""
        assert self._reader is None or self._reader.done(), "somebody reads already"
        self._reader = asyncio.get_running_loop().create_future()
        if self._chunks:
            self._reader.set_result(self._chunks.popleft())
        return self._reader

    def put(self, chunk: Chunk) -> None:
        if self._ended:
            return
        self._ended = chunk.finish_reason is not None
        if self._reader is None or self._reader.done():  # nobody waits
            self._chunks.append(chunk)
        else:
            self._reader.set_result(chunk)

    def finish(self) -> None:
        if not self._ended:
            self._on_finish(self)

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_abort(self)
