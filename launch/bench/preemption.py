"""What preemption is for: short jobs that arrive behind long ones, under two policies on the same model."""

import asyncio
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from tqdm import tqdm

from common.config import ConfigError, Policy
from launch.bench.client import Client, RequestFailed
from launch.bench.server import serving
from launch.lab.samples import Sample

_LONG_PROMPT = "Tell me everything that you know about the history of shipping."
_SHORT_PROMPT = "Name a colour."
_HEAD_START = 10  # tokens that every long job has emitted when the short ones arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionBench:
    """Long jobs fill the batch, then short ones arrive: completion times under each policy, on the embedded model."""

    policies: tuple[Policy, ...] = ("fcfs", "skip-join")
    """Policies to compare; each gets a server of its own, in turn."""
    rounds: int = 3
    """Times that all policies are measured; the medians count."""
    long_jobs: int = 4
    """Jobs that are running when the short ones come. Also the batch limit."""
    long_tokens: int = 400
    """Tokens of each long job."""
    short_jobs: int = 8
    """Jobs that arrive behind them, all at once."""
    short_tokens: int = 8
    """Tokens of each short job."""

    def run(self) -> int:
        """Raises ConfigError."""
        medians: dict[Policy, list[float]] = {policy: [] for policy in self.policies}
        longs: dict[Policy, list[float]] = {policy: [] for policy in self.policies}
        with tqdm(total=self.rounds * len(self.policies)) as bar:
            for _ in range(self.rounds):
                for policy in self.policies:
                    bar.set_description(policy)
                    with serving(["--policy", policy, "--max-batch-jobs", str(self.long_jobs)]) as url:
                        short, long = self._run(url)
                    medians[policy].append(statistics.median(answer.jct_s for answer in short))
                    longs[policy].append(statistics.median(answer.jct_s for answer in long))
                    bar.update()
        self._report(medians, longs)
        return 0

    def _run(self, url: str) -> tuple[list[Sample], list[Sample]]:
        try:
            return uvloop.run(self._measure(url))
        except RequestFailed as error:
            raise ConfigError(f"a request failed: {error}") from None

    async def _measure(self, url: str) -> tuple[list[Sample], list[Sample]]:
        """The short and the long jobs' answers."""
        async with Client(url) as client:
            await client.prepare()
            running = [asyncio.Event() for _ in range(self.long_jobs)]
            long = [
                asyncio.create_task(client.complete(_LONG_PROMPT, self.long_tokens, _at(_HEAD_START, event)))
                for event in running
            ]
            await _begun(running, long)
            short = await asyncio.gather(
                *(client.complete(_SHORT_PROMPT, self.short_tokens) for _ in range(self.short_jobs))
            )
            return list(short), list(await asyncio.gather(*long))

    def _report(self, medians: dict[Policy, list[float]], longs: dict[Policy, list[float]]) -> None:
        summary = {policy: statistics.median(values) for policy, values in medians.items()}
        for policy, value in summary.items():
            print(
                f"{policy:>10}: short jobs' median JCT {value:7.2f} s, "
                f"long jobs' {statistics.median(longs[policy]):7.2f} s  {[round(v, 2) for v in medians[policy]]}"
            )
        print(json.dumps({"bench": "preemption", "short_median_jct_s": medians, "long_median_jct_s": longs}))


async def _begun(running: list[asyncio.Event], tasks: list["asyncio.Task[Sample]"]) -> None:
    """Wait until all run. Raises RequestFailed where one has failed, and ConfigError where one has ended already."""
    for event, task in zip(running, tasks, strict=True):
        either: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()), task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not event.is_set():
            either[0].cancel()
            task.result()
            raise ConfigError(f"--long-tokens must be at least {_HEAD_START}")


def _at(count: int, event: asyncio.Event) -> Callable[[int], None]:
    return lambda tokens: event.set() if tokens >= count else None
