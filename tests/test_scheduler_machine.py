"""Random lives of the scheduler against a model of the memories: no block in two places, no KV value lost."""

from collections import deque

from fakes import COST_FOR_MACHINES, generation
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.config import Config
from common.records import Plan, Result
from gateway.scheduling.job import Job, Residence
from gateway.scheduling.scheduler import Scheduler

BLOCK = 4
Slots = dict[int, list[tuple[int, int] | None]]  # block -> (job, position) per slot


class Memories:
    """What workers would hold. Copies run before or after the batch (`late`), unless the plan wants them first."""

    def __init__(self) -> None:
        self.device: Slots = {}
        self.host: Slots = {}

    def run(self, plan: Plan, late: bool) -> None:
        if not late or plan.copies_first:
            self._copy(plan)
        for entry in plan.entries:
            self._compute(entry.job_id, entry.start, len(entry.tokens), entry.blocks)
        if late and not plan.copies_first:
            self._copy(plan)

    def _copy(self, plan: Plan) -> None:
        for device, host in plan.offloads:
            self.host[host] = list(self.device[device])
        for host, device in plan.uploads:
            self.device[device] = list(self.host[host])

    def _compute(self, job_id: int, start: int, count: int, blocks: list[int]) -> None:
        for position in range(start):
            held = self.device[blocks[position // BLOCK]][position % BLOCK]
            assert held == (job_id, position), f"job {job_id} reads {held} at position {position}"
        for position in range(start, start + count):
            block = blocks[position // BLOCK]
            self.device.setdefault(block, [None] * BLOCK)[position % BLOCK] = (job_id, position)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["skip-join", "mlfq", "fcfs", "static", "srpt"]),
        strategy=st.sampled_from(["proactive", "reactive", "recompute", "defer"]),
        stages=st.integers(1, 3),
        device=st.integers(12, 24),
        host=st.integers(0, 24),
        aging=st.sampled_from([0.0, 1.0, 8.0]),
        chunk=st.sampled_from([0, 1, 3, 8]),
    )
    def start(  # noqa: PLR0917 - drawn by name
        self, policy: str, strategy: str, stages: int, device: int, host: int, aging: float, chunk: int
    ) -> None:
        config = Config(
            policy=policy,  # type: ignore[arg-type]
            kv_strategy=strategy,  # type: ignore[arg-type]
            pipeline_parallel=stages,
            max_batch_jobs=3,
            block_tokens=BLOCK,
            aging=aging,
            prefill_chunk_tokens=chunk,
        )
        self.scheduler = Scheduler(config, COST_FOR_MACHINES, device, host)
        self.memories = Memories()
        self.jobs: list[Job] = []
        self.flying: deque[Plan] = deque()
        self.now = 0.0

    @rule(prompt=st.integers(1, 20), output=st.integers(1, 28))
    def submit(self, prompt: int, output: int) -> None:
        self.jobs.append(self.scheduler.submit(len(self.jobs), generation(prompt, output), self.now))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(data.draw(st.sampled_from(self.jobs)))

    @rule(late=st.booleans())
    def plan(self, late: bool) -> None:
        plan = self.scheduler.plan(self.now)
        if plan is not None:
            self.memories.run(plan, late)
            self.flying.append(plan)

    @precondition(lambda self: self.flying)
    @rule(seconds=st.floats(0.1, 50.0))
    def commit(self, seconds: float) -> None:
        plan = self.flying.popleft()
        self.now += seconds
        self.scheduler.commit(Result(plan.seq, [7] * len(plan.entries), 0.0, 0.0), self.now)

    @rule(iterations=st.integers(1, 30), late=st.booleans())
    def go_on(self, iterations: int, late: bool) -> None:
        for _ in range(iterations):
            self.plan(late)
            if self.flying:
                self.commit(1.0)

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        ledger = self.scheduler.ledger
        on_device = [block for job in self.jobs for block in job.device_blocks]
        on_host = [block for job in self.jobs for block in job.host_blocks]
        assert sorted(on_device + ledger.device._free) == list(range(ledger.device.num_blocks))
        assert sorted(on_host + ledger.host._free) == list(range(ledger.host.num_blocks))
        leaving = [job for job in self.jobs if job.residence is Residence.OFFLOADING]
        assert ledger.departing == sum(len(job.device_blocks) for job in leaving)

    @invariant()
    def every_active_job_is_in_one_line(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        queue = self.scheduler.queue
        queued = [job for line in (queue.cold, queue.resident, queue.away) for job in line]
        active = [job for job in self.jobs if self._is_active(job)]
        assert sorted(job.id for job in queued) == sorted(job.id for job in active)
        for line in (queue.cold, queue.resident, queue.away):
            ranks = [job.rank for job in line]
            assert ranks == sorted(ranks)
        assert self.scheduler.num_waiting == sum(job.started_at is None for job in active)

    @staticmethod
    def _is_active(job: Job) -> bool:
        in_transit = job.residence in (Residence.OFFLOADING, Residence.UPLOADING)
        return job.in_flight or in_transit or (job.finish_reason is None and not job.aborted)

    def teardown(self) -> None:
        """Every job ends, and at rest all blocks are free."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            self.plan(late=True)
            if not self.flying:
                break
            self.commit(1.0)
        assert all(job.aborted or job.finish_reason == "length" for job in self.jobs), repr(self.scheduler)
        assert self.scheduler.ledger.device.num_used == self.scheduler.ledger.host.num_used == 0
        assert len(self.scheduler.queue) == 0


SchedulerMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase
