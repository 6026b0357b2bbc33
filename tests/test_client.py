import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest
from fakes_gateway import FakeEngine, serving

from launch.bench.client import Client, Endpoint, RequestFailed
from launch.lab.samples import Sample

T = TypeVar("T")


def with_client(engine: FakeEngine, use: Callable[[Client], Awaitable[T]], **options: object) -> T:
    async def run(url: str) -> T:
        async with Client(f"{url}/v1", **options) as client:  # type: ignore[arg-type]
            return await use(client)

    with serving(engine) as url:
        return asyncio.run(run(url))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_an_answer_has_its_tokens_and_its_times_in_order(endpoint: Endpoint) -> None:
    async def use(client: Client) -> Sample:
        await client.prepare()
        return await client.complete("hello", 20)

    sample = with_client(FakeEngine("abc"), use, endpoint=endpoint)
    assert sample.output_tokens == 20
    assert 0 < sample.ttft_s <= sample.jct_s
    assert 0 <= sample.longest_gap_s <= sample.jct_s


def test_lengths_are_exact_where_the_server_allows_it() -> None:
    engine = FakeEngine("abc")

    async def use(client: Client) -> None:
        await client.prepare()
        await client.complete("hello", 20)

    with_client(engine, use)
    assert engine.jobs[-1].stop_tokens == frozenset()
    assert engine.jobs[-1].min_tokens == engine.jobs[-1].max_tokens == 20


def test_prompts_have_about_the_tokens_that_were_asked_for() -> None:
    engine = FakeEngine("abc")

    async def use(client: Client) -> None:
        await client.prepare()  # a token is a byte here: words have several
        await client.complete(client.prompt(Random(1), 200), 5)

    with_client(engine, use)
    assert len(engine.jobs[-1].prompt) == pytest.approx(200, rel=0.2)


def test_what_a_chat_template_adds_is_not_taken_for_words() -> None:
    engine = FakeEngine("abc")
    prompts: list[int] = []

    async def use(client: Client) -> None:
        await client.prepare()
        for tokens in (60, 400):
            await client.complete(client.prompt(Random(1), tokens), 5)
            prompts.append(len(engine.jobs[-1].prompt))

    with_client(engine, use, endpoint="chat")
    assert prompts == [pytest.approx(60, rel=0.25), pytest.approx(400, rel=0.15)]


def test_progress_is_told_as_tokens_come() -> None:
    counts: list[int] = []

    async def use(client: Client) -> None:
        client.model = "tiny/bytes"
        await client.complete("hello", 3, counts.append)

    with_client(FakeEngine("abc"), use)
    assert counts[-1] == 3
    assert counts == sorted(counts)


def test_a_refusal_is_told_with_its_status() -> None:
    engine = FakeEngine()
    engine.full_for_s = 2.0

    async def use(client: Client) -> None:
        await client.prepare()

    with pytest.raises(RequestFailed, match="429"):
        with_client(engine, use)


def test_no_server_is_told_as_such() -> None:
    async def use() -> None:
        async with Client("http://127.0.0.1:9/v1") as client:
            await client.prepare()

    with pytest.raises(RequestFailed, match="cannot ask"):
        asyncio.run(use())


def test_a_server_that_hangs_up_after_an_answer_without_saying_so_gets_each_request() -> None:
    event = b'data: {"choices": [{"text": "so"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n'

    answering: list[asyncio.Task[None] | None] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(event), event))
        while not (await reader.read(2**16)).endswith(b"}"):  # the body
            pass
        await reader.read(1)  # the beginning of another request, or the end
        writer.close()
        await writer.wait_closed()

    async def use() -> list[int]:
        async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(f"http://127.0.0.1:{port}/v1") as client:
                lengths = [(await client.complete("hello", 1)).output_tokens for _ in range(3)]
            await asyncio.gather(*(task for task in answering if task is not None))
            return lengths

    assert asyncio.run(use()) == [1, 1, 1]
