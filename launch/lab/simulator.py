"""A discrete-event simulation of a server: its own scheduler, a manual clock, and a cost model for the workers.

Knows no policy. As in the server, plans reach all stages at once, and a stage hands an iteration on when it has
computed it and finished the plan's copies. At most as many plans are in flight as there are stages: none is made ahead,
as results are seen, and plans are made, in no time.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from common.config import Config, ConfigError, parse_bytes
from common.records import Plan, Result
from gateway.generation import Generation
from gateway.recording import Recorder
from gateway.scheduling.cost import IterationCost
from gateway.scheduling.job import Job
from gateway.scheduling.scheduler import Scheduler
from launch.lab.machine import Machine
from launch.lab.samples import Sample, summary
from launch.lab.workload import Request

_TOKEN = 7  # any: simulated models say the same always


@dataclass(slots=True)
class Simulated:
    """What a simulated run gave."""

    samples: list[Sample] = field(default_factory=list)  # in order of arrival
    makespan_s: float = 0.0
    busy_s: float = 0.0  # with a plan in flight
    stalled_s: float = 0.0  # in which the last stage waited for copies
    computed_tokens: int = 0  # that went through the model, recomputed ones too
    iterations: int = 0
    preemptions: int = 0
    promotions: int = 0
    recomputes: int = 0
    offloaded_blocks: int = 0

    def summary(self) -> dict[str, float]:
        return summary(self.samples) | {
            "stall_share": self.stalled_s / self.busy_s if self.busy_s else 0.0,
            "preemptions": self.preemptions,
            "promotions": self.promotions,
            "recomputes": self.recomputes,
            "offloaded_blocks": self.offloaded_blocks,
            "makespan_s": self.makespan_s,
        }


@dataclass(slots=True)
class _Seen:
    """What a client has seen of its answer so far."""

    first_s: float = 0.0
    last_s: float = 0.0
    longest_gap_s: float = 0.0

    def token(self, now: float) -> None:
        if self.last_s:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_s)
        else:
            self.first_s = now
        self.last_s = now


class Workers:
    """The stages as the cost model sees them: equal parts of every iteration, each with links of its own for copies."""

    def __init__(self, cost: IterationCost, stages: int) -> None:
        self._cost = cost
        self._stage_free_s = [0.0] * stages
        self._links_free_s = {"offload": 0.0, "upload": 0.0}  # the two directions do not disturb each other

    def run(self, plan: Plan, now: float) -> tuple[float, float]:
        """When the result is there, and for how long the last stage waited for copies."""
        compute_s = self._compute_s(plan) / len(self._stage_free_s)
        copied = max(self._copy("offload", len(plan.offloads), now), self._copy("upload", len(plan.uploads), now))
        there, stalled_s = now, 0.0
        for stage, free in enumerate(self._stage_free_s):
            ready = max(there, free)
            start = max(ready, copied) if plan.copies_first else ready
            computed = start + compute_s
            there = max(computed, copied)
            stalled_s = start - ready + there - computed
            self._stage_free_s[stage] = there
        return there, stalled_s

    def _compute_s(self, plan: Plan) -> float:
        prefill_tokens = decode_jobs = context_tokens = 0
        for entry in plan.entries:
            if len(entry.tokens) == 1 and entry.start:
                decode_jobs += 1
                context_tokens += entry.start + 1
            else:
                prefill_tokens += len(entry.tokens)
        return self._cost.iteration_s(prefill_tokens, decode_jobs, context_tokens) if plan.entries else 0.0

    def _copy(self, link: str, blocks: int, now: float) -> float:
        if not blocks:
            return now
        self._links_free_s[link] = max(self._links_free_s[link], now) + blocks * self._cost.copy_s
        return self._links_free_s[link]


class Simulation:
    """One run of `requests`, ordered by arrival, under a configuration on a machine."""

    def __init__(
        self, config: Config, machine: Machine, requests: Sequence[Request], recorder: Recorder | None = None
    ) -> None:
        config = replace(config, prefix_cache=False)  # all simulated prompts are made of one token
        self._requests = requests
        self._recorder = recorder
        device_blocks, host_blocks = _pools(config, machine, requests)
        self.scheduler = Scheduler(config, machine.cost, device_blocks, host_blocks)
        self._workers = Workers(machine.cost, config.pipeline_parallel)
        self._flights: deque[tuple[float, float, Plan]] = deque()  # (result there at, stalled s, plan)
        self._live: dict[int, tuple[Job, _Seen]] = {}
        self._samples: dict[int, Sample] = {}
        self._result = Simulated()

    def run(self, progress: Callable[[], object] = lambda: None) -> Simulated:
        """To the end of the last job; calls `progress` once for each job that ends."""
        arriving = deque(enumerate(self._requests))
        start_s = now = arriving[0][1].arrival_s
        while arriving or self._live:
            while arriving and arriving[0][1].arrival_s <= now:
                self._submit(*arriving.popleft())
            self._plan(now)
            arrival_s = arriving[0][1].arrival_s if arriving else math.inf
            result_s = self._flights[0][0] if self._flights else math.inf
            before, now = now, min(arrival_s, result_s)
            assert now < math.inf, f"nothing more happens: {self.scheduler!r}"
            self._result.busy_s += (now - before) if self._flights else 0.0
            if result_s <= arrival_s:
                self._commit(now, progress)
        self._result.makespan_s = now - start_s
        self._result.samples = [sample for _, sample in sorted(self._samples.items())]
        return self._result

    def _submit(self, job_id: int, request: Request) -> None:
        """At its own time of arrival, though a slot of the pipeline may have become free only later."""
        generation = Generation(prompt=[_TOKEN] * request.prompt_tokens, max_tokens=request.output_tokens)
        job = self.scheduler.submit(job_id, generation, request.arrival_s)
        self._live[job_id] = (job, _Seen())

    def _plan(self, now: float) -> None:
        while (plan := self.scheduler.plan(now)) is not None:
            self._flights.append((*self._workers.run(plan, now), plan))
            self._result.iterations += 1
            self._result.offloaded_blocks += len(plan.offloads)
            self._result.computed_tokens += sum(len(entry.tokens) for entry in plan.entries)
        self._record(now)

    def _commit(self, now: float, progress: Callable[[], object]) -> None:
        _, stalled_s, plan = self._flights.popleft()
        self._result.stalled_s += stalled_s
        tokens = [None if entry.sampling is None else _TOKEN for entry in plan.entries]
        for outcome in self.scheduler.commit(Result(plan.seq, tokens, stalled_s, 0.0), now):
            job, seen = self._live[outcome.job.id]
            if outcome.token is not None:
                seen.token(now)
            if outcome.finish_reason is not None:
                self._finish(job, seen, now)
                progress()
        self._record(now)

    def _finish(self, job: Job, seen: _Seen, now: float) -> None:
        del self._live[job.id]
        self._samples[job.id] = Sample(
            prompt_tokens=len(job.generation.prompt),
            output_tokens=len(job.output),
            ttft_s=seen.first_s - job.arrival,
            jct_s=now - job.arrival,
            longest_gap_s=seen.longest_gap_s,
        )
        self._result.preemptions += job.counts.preemptions
        self._result.promotions += job.counts.promotions
        self._result.recomputes += job.counts.recomputes
        if self._recorder is not None:
            self._recorder.end(job, now)

    def _record(self, now: float) -> None:
        if self._recorder is not None:
            self._recorder.look((job for job, _ in self._live.values()), now)


def _pools(config: Config, machine: Machine, requests: Sequence[Request]) -> tuple[int, int]:
    """Device and host blocks: as configured, else as the machine has; never more than all requests could fill.

    Raises ConfigError where a request does not fit, as a server would refuse it.
    """
    sizes = [-(-(r.prompt_tokens + r.output_tokens) // config.block_tokens) for r in requests]
    most = sum(sizes)

    def blocks(count: int | None, size: str | None, available: int) -> int:
        if count is None:
            count = int((available if size is None else machine.stages * parse_bytes(size)) // machine.block_bytes)
        return min(most, count)

    device = blocks(config.kv_device_blocks, config.kv_device_memory, machine.device_bytes)
    if max(sizes) > device:
        raise ConfigError(f"the largest request needs {max(sizes)} KV blocks, and the device has {device}")
    return device, blocks(config.kv_host_blocks, config.kv_host_memory, machine.host_bytes)
