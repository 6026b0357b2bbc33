"""A whole server without HTTP in one process: the real engine, channel codec, stages and models; ranks are threads."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes import chunks_of

from common.channel import LocalChannel
from common.config import Config
from common.model_files import locate
from common.records import Logprobs
from common.spec_reader import read_spec
from gateway.engine import JobEngine
from gateway.generation import FinishReason, Generation, SchedulingTrace, Stream
from worker.link import LocalWiring
from worker.loop import serve_stage

# All stages may be on one GPU, of which each by itself would take most.
_MEMORY: dict[str, Any] = {"kv_device_memory": "512MiB", "kv_host_memory": "256MiB"}


@dataclass(frozen=True)
class Answer:
    """What came of one job."""

    tokens: list[int]
    finish_reason: FinishReason
    trace: SchedulingTrace
    logprobs: list[Logprobs]  # where they were asked for
    prompt_logprobs: list[Logprobs]


class LocalWorld:
    """Runs generations through an engine and its stages."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        files = locate(config.model)
        ranks = LocalChannel.world(config.pipeline_parallel + 1)
        self._engine = JobEngine(config, files, read_spec(files), ranks[0], clock=clock)
        wiring = LocalWiring()
        self._stages = [
            threading.Thread(
                target=serve_stage,
                args=(ranks[index + 1], config, index),
                kwargs={"connect": wiring.connect},
                daemon=True,
            )
            for index in range(config.pipeline_parallel)
        ]

    def run(self, generations: list[Generation], *, one_by_one: bool = False) -> list[Answer]:
        """Answers in the order of the generations. The engine starts and ends here; afterwards all blocks are free."""
        return asyncio.run(self._run(generations, one_by_one))

    async def _run(self, generations: list[Generation], one_by_one: bool) -> list[Answer]:
        for stage in self._stages:
            stage.start()
        self._engine.start()
        assert await self._engine.until("ready", "lost") == "ready", self._engine.failure
        if one_by_one:
            answers = [(await self._answers([generation]))[0] for generation in generations]
        else:
            answers = await self._answers(generations)
        scheduler = self._engine.scheduler
        assert scheduler is not None
        assert scheduler.ledger.device.num_used == scheduler.ledger.host.num_used == len(scheduler.queue) == 0
        assert await self._engine.stop(30.0)
        for stage in self._stages:
            stage.join(30.0)
            assert not stage.is_alive()
        return answers

    async def _answers(self, generations: list[Generation]) -> list[Answer]:
        async def collect(stream: Stream) -> Answer:
            tokens: list[int] = []
            logprobs: list[Logprobs] = []
            prompt_logprobs: list[Logprobs] = []
            async for chunk in chunks_of(stream):
                tokens += chunk.tokens
                logprobs += chunk.logprobs
                prompt_logprobs += chunk.prompt_logprobs
            assert chunk.finish_reason is not None
            assert chunk.trace is not None, chunk.error
            return Answer(tokens, chunk.finish_reason, chunk.trace, logprobs, prompt_logprobs)

        return list(await asyncio.gather(*map(collect, self._engine.submit(generations))))


def run_world(
    generations: list[Generation],
    *,
    one_by_one: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> list[Answer]:
    """Run generations through a new world with these options."""
    return LocalWorld(Config(**{**_MEMORY, **options}), clock).run(generations, one_by_one=one_by_one)
