"""The engine's promises to the HTTP side, with a stage that answers as it is told."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import answer, chunks_of, generation

from common.channel import LocalChannel, receive
from common.config import Config
from common.model_files import ModelFiles
from common.model_spec import ModelSpec
from common.records import UNSEEN, Fault, Plan, Ready, Setup, Stop, Up, decode_order, encode
from gateway.engine import JobEngine
from gateway.generation import Chunk, QueueFull, Stream, Unavailable
from gateway.recording import Recorder

SPEC = ModelSpec(
    family="llama",
    architecture="test",
    num_layers=2,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    ffn_size=16,
    vocab_size=100,
    context_length=128,
    dtype="fp32",
    activation="silu",
    norm_eps=1e-5,
    tied_embeddings=True,
    eos_token_ids=(0,),
    bos_token_id=None,
)


class ScriptedStage:
    """The only worker: answers every plan with token 7, once it may."""

    def __init__(self, channel: LocalChannel, device: str = "cpu") -> None:
        self._channel = channel
        self._device = device
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fault: str | None = None
        self.plans: list[Plan] = []
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._send(Ready("here", self._device, "fp32", "f00d", block_bytes=100, device_bytes=2000, host_bytes=2000))
        while True:
            message = receive(self._channel, 30.0)
            assert message is not None
            order = decode_order(message[1])
            if isinstance(order, Setup):
                self._send(Up(order.epoch))
            elif isinstance(order, Plan):
                self.plans.append(order)
                self.may_answer.wait(30.0)
                self._send(Fault(self.fault) if self.fault else answer(order))
            elif isinstance(order, Stop):
                self.stopped.set()
                return

    def _send(self, report: Any) -> None:
        self._channel.send([0], encode(report))


@asynccontextmanager
async def running(
    tmp_path: Path,
    clock: Callable[[], float] = time.monotonic,
    *,
    device: str = "cpu",
    recorder: Recorder | None = None,
    **options: Any,
) -> AsyncIterator[tuple[JobEngine, ScriptedStage]]:
    """A ready engine and its stage."""
    model = tmp_path / "model.gguf"
    model.touch()
    ranks = LocalChannel.world(2)
    files = ModelFiles("gguf", model, "model")
    engine = JobEngine(Config(**options), files, SPEC, ranks[0], clock=clock, recorder=recorder)
    stage = ScriptedStage(ranks[1], device)
    engine.start()
    assert await engine.until("ready", "lost") == "ready", engine.failure
    stage.plans.clear()
    yield engine, stage
    stage.may_answer.set()
    assert await engine.stop(10.0)
    assert stage.stopped.wait(10.0)


async def collect(stream: Stream) -> list[Chunk]:
    return [chunk async for chunk in chunks_of(stream)]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.005)


def test_a_stream_gives_every_token_and_ends_with_a_reason_and_a_trace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, _):
            chunks = await collect(engine.submit([generation(4, 3)])[0])
            assert [chunk.tokens for chunk in chunks] == [(7,), (7,), (7,)]
            assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
            assert chunks[-1].trace is not None
            assert chunks[-1].trace.iterations == 3
            assert engine.max_context == 128

    asyncio.run(scenario())


def test_chunks_and_trace_tell_how_much_of_the_prompt_was_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, _):
            for cached_tokens in (0, 32):
                chunks = await collect(engine.submit([generation(40, 2)])[0])
                assert [chunk.cached_tokens for chunk in chunks] == [cached_tokens] * 2
                assert chunks[-1].trace is not None
                assert chunks[-1].trace.cached_tokens == cached_tokens
            assert engine.statistics.cached_tokens == 32

    asyncio.run(scenario())


def test_nothing_is_submitted_before_it_is_ready_or_after_it_drains(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, stage):
            stage.may_answer.clear()
            stream = engine.submit([generation(4, 3)])[0]
            engine.drain()
            with pytest.raises(Unavailable) as refused:
                engine.submit([generation(4, 3)])
            assert refused.value.state == "draining"
            stage.may_answer.set()
            assert (await collect(stream))[-1].finish_reason == "length"
            await asyncio.wait_for(engine.until_idle(), 5.0)

    asyncio.run(scenario())


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, max_waiting_jobs=3, max_batch_jobs=1) as (engine, stage):
            stage.may_answer.clear()
            streams = engine.submit([generation(4, 2)])
            await until(lambda: engine.num_waiting == 0)
            streams += engine.submit([generation(4, 2), generation(4, 2)])
            with pytest.raises(QueueFull) as full:
                engine.submit([generation(4, 2), generation(4, 2)])
            assert 1.0 <= full.value.retry_after_s <= 60.0
            assert engine.num_active == 3
            stage.may_answer.set()
            answers = await asyncio.gather(*map(collect, streams))
            assert [chunks[-1].finish_reason for chunks in answers] == ["length"] * 3

    asyncio.run(scenario())


def test_an_idle_night_does_not_make_the_wait_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        now = [0.0]
        async with running(tmp_path, lambda: now[0], max_waiting_jobs=3, max_batch_jobs=1) as (engine, stage):
            for now[0] in (0.0, 30_000.0, 60_000.0):
                await collect(engine.submit([generation(4, 2)])[0])
                await until(lambda: engine.num_active == 0)
            stage.may_answer.clear()
            engine.submit([generation(4, 2)])
            await until(lambda: engine.num_waiting == 0)
            engine.submit([generation(4, 2) for _ in range(3)])
            with pytest.raises(QueueFull) as full:
                engine.submit([generation(4, 2)])
            assert full.value.retry_after_s == 1.0

    asyncio.run(scenario())


def test_an_abort_frees_the_blocks_with_the_iterations_that_are_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, stage):
            stage.may_answer.clear()
            stream = engine.submit([generation(40, 50)])[0]
            await until(lambda: len(stage.plans) == 1)
            stream.abort()
            stage.may_answer.set()
            assert engine.scheduler is not None
            pool = engine.scheduler.ledger.device
            await until(lambda: pool.num_used == 0 and engine.num_active == 0)
            assert len(stage.plans) <= 2
            assert engine.statistics.aborted == 1

    asyncio.run(scenario())


def test_a_job_that_ended_is_told_although_the_next_turn_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, _):
            assert engine.scheduler is not None
            plan = engine.scheduler.plan

            def failing(now: float) -> Plan | None:
                assert engine.num_active
                return plan(now)

            engine.scheduler.plan = failing  # type: ignore[method-assign, assignment]
            chunks = await asyncio.wait_for(collect(engine.submit([generation(4, 3)])[0]), 10.0)
            assert chunks[-1].finish_reason == "length"
            assert await engine.until("lost") == "lost"

    asyncio.run(scenario())


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        recorder = Recorder(Path("/dev/full"))  # what is written there meets a full disk
        async with running(tmp_path, recorder=recorder) as (engine, _):
            for _ in range(20):
                streams = engine.submit([generation(4, 3) for _ in range(10)])
                answers = await asyncio.gather(*map(collect, streams))
                assert {chunks[-1].finish_reason for chunks in answers} == {"length"}
            assert engine.state == "ready"

    asyncio.run(scenario())
    assert "the recording is not complete" in caplog.text


@pytest.mark.parametrize(
    ("device", "given", "most"), [("cpu", None, 16), ("cuda:1 NVIDIA H100", None, 64), ("cuda:1 NVIDIA H100", 2, 2)]
)
def test_batches_are_as_large_as_the_device_likes_them_or_as_was_asked(
    tmp_path: Path, device: str, given: int | None, most: int
) -> None:
    async def scenario() -> None:
        async with running(tmp_path, device=device, max_batch_jobs=given) as (engine, stage):
            stage.may_answer.clear()
            streams = engine.submit([generation(4, 2) for _ in range(20)])
            stage.may_answer.set()
            await asyncio.gather(*map(collect, streams))
            assert max(len(plan.entries) for plan in stage.plans) == min(most, 20)

    asyncio.run(scenario())


def test_a_text_that_is_complete_ends_its_job_with_a_trace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, _):
            await collect(engine.submit([generation(40, 1)])[0])  # into the prefix cache
            stream = engine.submit([generation(40, 80)])[0]
            reasons = []
            async for chunk in chunks_of(stream):
                reasons.append(chunk.finish_reason)
                stream.finish()
            assert reasons[-1] == "stop"
            assert len(reasons) < 100
            assert chunk.cached_tokens == 32
            assert chunk.trace is not None
            assert (engine.statistics.finished, engine.statistics.aborted) == (2, 0)

    asyncio.run(scenario())


def test_the_next_plan_is_there_before_a_result_was_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, stage):
            stage.may_answer.clear()
            stream = engine.submit([generation(4, 3)])[0]
            scheduler = engine.scheduler
            assert scheduler is not None
            await until(lambda: scheduler.num_in_flight == 2)
            stage.may_answer.set()
            assert [chunk.tokens for chunk in await collect(stream)] == [(7,), (7,), (7,)]
            assert stage.plans[1].entries[0].tokens == [UNSEEN]

    asyncio.run(scenario())


def test_plans_wait_for_results_where_that_is_wanted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, plan_ahead=False) as (engine, stage):
            assert len(await collect(engine.submit([generation(4, 3)])[0])) == 3
            assert [plan.entries[0].tokens[-1] for plan in stage.plans] == [3, 7, 7]

    asyncio.run(scenario())


def test_when_a_stage_is_lost_every_stream_is_told_and_nobody_is_let_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (engine, stage):
            stage.fault = "out of memory"
            streams = engine.submit([generation(4, 5), generation(4, 5)])
            answers = await asyncio.wait_for(asyncio.gather(*map(collect, streams)), 10.0)
            assert [chunks[-1].finish_reason for chunks in answers] == ["error", "error"]
            assert await engine.until("lost") == "lost"
            assert engine.failure == "rank 1: out of memory"
            with pytest.raises(Unavailable):
                engine.submit([generation(4, 5)])

    asyncio.run(scenario())


def test_a_stage_that_falls_silent_is_lost_after_the_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, iteration_timeout=0.3) as (engine, stage):
            stage.may_answer.clear()
            chunks = await asyncio.wait_for(collect(engine.submit([generation(4, 5)])[0]), 10.0)
            assert chunks[-1].finish_reason == "error"
            assert engine.failure is not None
            assert "--iteration-timeout" in engine.failure

    asyncio.run(scenario())


def test_stopping_while_loading_does_not_wait_for_the_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        ranks = LocalChannel.world(2)  # a stage that never answers
        model = tmp_path / "model.gguf"
        model.touch()
        engine = JobEngine(Config(), ModelFiles("gguf", model, "model"), SPEC, ranks[0])
        engine.start()
        with pytest.raises(Unavailable) as refused:
            engine.submit([generation(4, 5)])
        assert refused.value.state == "loading"
        assert await engine.stop(5.0)
        assert engine.failure is None

    asyncio.run(scenario())
