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
        self._arrived = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Chunk]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                yield chunk
                if chunk.finish_reason is not None:
                    return
            self._arrived.clear()
            await self._arrived.wait()

    def put(self, chunk: Chunk) -> None:
        if not self._ended:
            self._ended = chunk.finish_reason is not None
            self._chunks.append(chunk)
            self._arrived.set()

    def finish(self) -> None:
        if not self._ended:
            self._on_finish(self)

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_abort(self)
