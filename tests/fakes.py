"""Stand-ins for unit tests of pure logic: a manual clock's drive of the scheduler, and small constructors."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from common.config import Config
from common.records import Plan, Result
from gateway.generation import Chunk, Generation, Stream
from gateway.scheduling.cost import CostModel, LinearCost
from gateway.scheduling.job import Job
from gateway.scheduling.scheduler import Outcome, Scheduler


def generation(prompt: int, output: int, **options: Any) -> Generation:
    """A job with a prompt of `prompt` tokens that emits `output` tokens."""
    return Generation(prompt=list(range(prompt)), max_tokens=output, **options)


def scheduler(cost: CostModel, *, device: int = 10_000, host: int = 10_000, **options: Any) -> Scheduler:
    return Scheduler(Config(**options), cost, device, host)


async def chunks_of(stream: Stream) -> AsyncIterator[Chunk]:
    """All of them, as they come."""
    while True:
        yield (chunk := await stream.next())
        if chunk.finish_reason is not None:
            return


class FixedMask:
    """A constraint that always allows the same, and is ready when a test says so."""

    def __init__(self, mask: bytes = b"\xff") -> None:
        self.failure: str | None = None
        self.ready = True
        self.accepted: list[int] = []
        self.waits: list[float] = []
        self.on_ready: Callable[[], None] | None = None
        self._mask = mask

    def start(self, on_ready: Callable[[], None]) -> None:
        self.on_ready = on_ready

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def wait(self, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        return self.ready

    def mask(self) -> bytes:
        return self._mask


@dataclass
class Drive:
    """Runs a scheduler against a cost model with a manual clock, one plan at a time."""

    scheduler: Scheduler
    cost: CostModel
    now: float = 0.0
    finished_at: dict[int, float] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    schedule: list[list[int]] = field(default_factory=list)  # job ids of each iteration

    def submit(self, job_id: int, prompt: int, output: int, **options: Any) -> Job:
        """Shares no KV with other jobs, unless they are given the same `cache_salt`."""
        job = generation(prompt, output, **{"cache_salt": f"{job_id}", **options})
        return self.scheduler.submit(job_id, job, self.now)

    def step(self) -> list[Outcome] | None:
        """One iteration; None when there was nothing to do."""
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return None
        self.plans.append(plan)
        self.schedule.append([entry.job_id for entry in plan.entries])
        self.now += self.seconds(plan)
        outcomes = self.scheduler.commit(answer(plan), self.now)
        for outcome in outcomes:
            if outcome.finish_reason is not None:
                self.finished_at[outcome.job.id] = self.now
        return outcomes

    def run(self, most_steps: int = 100_000) -> None:
        for _ in range(most_steps):
            if self.step() is None:
                return
        raise AssertionError(f"still busy after {most_steps} iterations: {self.scheduler!r}")

    def seconds(self, plan: Plan) -> float:
        prompt_tokens = [len(entry.tokens) for entry in plan.entries if len(entry.tokens) > 1 or entry.start == 0]
        decodes = len(plan.entries) - len(prompt_tokens)
        return max([*(self.cost.prefill_s(sum(prompt_tokens)) for _ in prompt_tokens[:1]), self.cost.decode_s(decodes)])


def answer(plan: Plan, token: int = 7) -> Result:
    """What the last stage would say, every job that wants a token getting the same."""
    return Result(plan.seq, [token if entry.sampling else None for entry in plan.entries], 0.0, 0.0)


COST_FOR_MACHINES = LinearCost(decode=1.0, prefill_per_token=0.25)
