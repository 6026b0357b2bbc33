"""One job's tokens between the engine's hand-over and the reader."""

import asyncio

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


def test_what_comes_after_a_reader_gave_up_is_for_the_next() -> None:
    async def read() -> Chunk:
        made = stream()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.next(), timeout=0)
        made.put(Chunk((1,)))
        return await made.next()

    assert asyncio.run(read()).tokens == (1,)


def test_nothing_comes_after_the_last_chunk() -> None:
    async def read() -> bool:
        made = stream()
        made.put(Chunk((), "length"))
        made.put(Chunk((1,)))
        assert (await made.next()).finish_reason == "length"
        return await is_there(made)

    assert not asyncio.run(read())


def test_nothing_comes_after_an_abort() -> None:
    async def read() -> bool:
        made = stream()
        made.abort()
        made.put(Chunk((1,)))
        return await is_there(made)

    assert not asyncio.run(read())


async def is_there(made: JobStream) -> bool:
    """Whether another chunk is."""
    reader = asyncio.ensure_future(made.next())
    await asyncio.sleep(0)
    return reader.done()
