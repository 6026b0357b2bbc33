"""The tokens of one job on their way to a client: filled by the engine's hand-over, iterated on the loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from gateway.generation import Chunk


class JobStream:
    """Lives on the event loop. Holds token ids only, so a client that reads slowly costs little."""

    def __init__(self, on_finish: Callable[["JobStream"], None], on_abort: Callable[["JobStream"], None]) -> None:
        self._on_finish = on_finish
        self._on_abort = on_abort
        self._chunks: deque[Chunk] = deque()
        self._reader: asyncio.Future[None] | None = None  # who waits for a chunk
        self._ended = False
        self._read = False  # to the end

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._read:
            raise StopAsyncIteration
        while not self._chunks:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk = self._chunks.popleft()
        self._read = chunk.finish_reason is not None
        return chunk

    def put(self, chunk: Chunk) -> None:
        if not self._ended:
            self._ended = chunk.finish_reason is not None
            self._chunks.append(chunk)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)

    def finish(self) -> None:
        if not self._ended:
            self._on_finish(self)

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_abort(self)
