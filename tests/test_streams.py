"""One job's tokens between the engine's hand-over and the reader."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.generation import Chunk
from gateway.streams import JobStream


def stream() -> JobStream:
    return JobStream(on_finish=lambda _: None, on_abort=lambda _: None)


def test_chunks_come_in_order_whether_they_are_asked_for_before_or_after() -> None:
    async def read() -> list[Chunk]:
        made = stream()
        early = asyncio.ensure_future(made.next())
        for token in (1, 2, 3):
            made.put(Chunk((token,)))
        return [await early, await made.next(), await made.next()]

    assert [chunk.tokens for chunk in asyncio.run(read())] == [(1,), (2,), (3,)]


def test_what_comes_after_a_reader_gave_up_waits_for_the_next() -> None:
    async def read() -> Chunk:
        made = stream()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.next(), timeout=0)
        made.put(Chunk((1,)))
        return await made.next()

    assert asyncio.run(read()).tokens == (1,)


@pytest.mark.parametrize("ends", [lambda made: made.put(Chunk((), "length")), JobStream.abort])
def test_nothing_comes_after_the_end(ends: Callable[[JobStream], None]) -> None:
    async def read() -> bool:
        made = stream()
        ends(made)
        made.put(Chunk((1,)))
        first = asyncio.ensure_future(made.next())
        await asyncio.sleep(0)
        return first.done() and first.result().tokens == (1,)

    assert not asyncio.run(read())
