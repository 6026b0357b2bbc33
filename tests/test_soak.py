"""Many clients at once on the embedded model; then memory, processors and counters are as before."""

import asyncio
import random
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest
from test_mpi import Server, running, skipjoin

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with", "his", "they")


def resident_mib(server: Server) -> float:
    return sum(child.memory_info().rss for child in server.children) / 2**20


def processor_share(server: Server, seconds: float) -> float:
    """Processor time of all ranks over wall time; 1.0 is one core."""

    def used() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in server.children)

    before, start = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - start)


async def stream_all(
    server: Server, requests: int, at_once: int | None = None, longest_prompt: int = 600
) -> list[tuple[int, str | None]]:
    """Tokens and finish reason of each request's stream, `at_once` of them at a time (None: all)."""
    rng = random.Random(3)
    room = asyncio.Semaphore(at_once or requests)

    async def one(client: openai.AsyncOpenAI) -> tuple[int, str | None]:
        async with room:
            return await answered(client)

    async def answered(client: openai.AsyncOpenAI) -> tuple[int, str | None]:
        prompt = " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, longest_prompt)))
        stream = await client.completions.create(
            model=server.model,
            prompt=prompt,
            max_tokens=rng.randint(4, 24),
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        reason, tokens = None, 0
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].finish_reason:
                reason = chunk.choices[0].finish_reason
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
        return tokens, reason

    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=1200) as client:
        return list(await asyncio.gather(*(one(client) for _ in range(requests))))


def test_two_hundred_streams_end_and_leave_memory_and_processors_as_before(tmp_path: Path) -> None:
    with running(skipjoin("--kv-device-memory", "512MiB", "--kv-host-memory", "64MiB"), tmp_path / "log") as server:
        asyncio.run(stream_all(server, 200))  # fills the pools, which are taken from the system on first use
        before = resident_mib(server)
        start = time.monotonic()
        ends = asyncio.run(stream_all(server, 200))
        seconds = time.monotonic() - start
        assert {reason for _, reason in ends} == {"length"}
        assert all(4 <= tokens <= 24 for tokens, _ in ends)
        after = resident_mib(server)
        idle = processor_share(server, 20.0)
        offloaded = server.metric("skipjoin_offloaded_blocks_total")
        sys.stderr.write(
            f"\n200 streams in {seconds:.0f} s; resident {before:.0f} MiB before, {after:.0f} MiB after; "
            f"{offloaded:.0f} blocks offloaded; idle processors {100 * idle:.1f} %\n"
        )
        assert server.metric("skipjoin_jobs") == 0
        assert server.metric('skipjoin_kv_blocks_used{memory="device"}') == 0
        assert server.metric('skipjoin_kv_blocks_used{memory="host"}') == 0
        assert after < 1.03 * before
        assert idle < 0.05


def test_a_thousand_requests_take_no_more_memory_than_a_hundred(tmp_path: Path) -> None:
    # Pools that the first hundred fill: memory is taken from the system when it is first used.
    with running(skipjoin("--kv-device-memory", "64MiB", "--kv-host-memory", "64MiB"), tmp_path / "log") as server:
        asyncio.run(stream_all(server, 100, at_once=16, longest_prompt=100))
        before = resident_mib(server)
        asyncio.run(stream_all(server, 900, at_once=16, longest_prompt=100))
        after = resident_mib(server)
        sys.stderr.write(f"\nresident {before:.0f} MiB after 100 requests, {after:.0f} MiB after 1,000\n")
        assert after < 1.05 * before


def test_an_idle_pipeline_of_two_stages_uses_little(tmp_path: Path) -> None:
    with running(skipjoin("--pipeline-parallel", "2"), tmp_path / "log") as server:
        share = processor_share(server, 20.0)
        assert all(psutil.pid_exists(child.pid) for child in server.children)
        sys.stderr.write(f"\nidle processors with two stages: {100 * share:.1f} %\n")
        assert share < 0.05
