"""Random lives of the scheduler against a model of the memories: no block in two places, no KV value lost."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from fakes import COST_FOR_MACHINES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.config import Config
from common.records import UNSEEN, Entry, Plan, Result, unpack_blocks
from gateway.generation import Generation
from gateway.scheduling.job import Job, Residence
from gateway.scheduling.prefix_cache import CachedBlock, PrefixCache
from gateway.scheduling.scheduler import Scheduler

BLOCK = 4
LEAST_DEVICE_BLOCKS = 12  # every job fits into them to its end, as the engine makes sure
Value = int  # stands for the KV of a token, which depends on all tokens before it
Slots = dict[int, list[Value | None]]  # block -> what its slots hold


class Transformer:
    """What KV values are: the same for the same tokens under the same salt, and for nothing else."""

    def __init__(self) -> None:
        self._values: dict[tuple[Value | str, int], Value] = {}

    def values(self, job: Job, end: int) -> list[Value]:
        """Of the job's first `end` tokens, of which the last may be one that it was not given yet."""
        tokens = job.tokens(0, end)
        if len(tokens) < end:
            tokens.append(self.next_token(job))
        assert len(tokens) == end
        return self._values_of(job, tokens)

    def next_token(self, job: Job) -> int:
        """As greedy decoding, a function of all that came before; often the same for different jobs."""
        return self._values_of(job, job.generation.prompt + job.output)[-1] % 2

    def _values_of(self, job: Job, tokens: list[int]) -> list[Value]:
        before: Value | str = job.generation.cache_salt
        values = []
        for token in tokens:
            before = self._values.setdefault((before, token), len(self._values))
            values.append(before)
        return values


class Memories:
    """What workers would hold."""

    def __init__(self, transformer: Transformer) -> None:
        self.device: Slots = {}
        self.host: Slots = {}
        self._transformer = transformer

    def copy(self, plan: Plan) -> None:
        for device, host in plan.offloads:
            self.host[host] = list(self.device[device])
        for host, device in plan.uploads:
            self.device[device] = list(self.host[host])

    def compute(self, plan: Plan, jobs: list[Job]) -> None:
        """As in a layer, all of the batch is written before anything is read."""
        for entry in plan.entries:
            self._write(entry, jobs[entry.job_id])
        for entry in plan.entries:
            self._read(entry, jobs[entry.job_id])

    def _write(self, entry: Entry, job: Job) -> None:
        end = entry.start + len(entry.tokens)
        seen = len(entry.tokens) - (entry.tokens[-1] == UNSEEN)
        assert entry.tokens[:seen] == job.tokens(entry.start, entry.start + seen)
        for position, value in enumerate(self._transformer.values(job, end)[entry.start :], entry.start):
            block = unpack_blocks(entry.blocks)[position // BLOCK]
            self.device.setdefault(block, [None] * BLOCK)[position % BLOCK] = value

    def _read(self, entry: Entry, job: Job) -> None:
        for position, value in enumerate(self._transformer.values(job, entry.start + len(entry.tokens))):
            held = self.device[unpack_blocks(entry.blocks)[position // BLOCK]][position % BLOCK]
            assert held == value, f"job {job.id} reads {held} for {value} at position {position}"


@dataclass
class Flight:
    """A plan on its way. Its copies may run at any time until it is committed; batches run one after the other."""

    plan: Plan
    copied: bool
    computed: bool


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["skip-join", "mlfq", "fcfs", "static", "srpt"]),
        strategy=st.sampled_from(["proactive", "reactive", "recompute", "defer"]),
        stages=st.integers(1, 3),
        device=st.integers(LEAST_DEVICE_BLOCKS, 24),
        host=st.integers(0, 24),
        aging=st.sampled_from([0.0, 1.0, 8.0]),
        chunk=st.sampled_from([0, 1, 3, 8]),
        shares=st.booleans(),
    )
    def start(  # noqa: PLR0917 - drawn by name
        self, policy: str, strategy: str, stages: int, device: int, host: int, aging: float, chunk: int, shares: bool
    ) -> None:
        config = Config(
            policy=policy,  # type: ignore[arg-type]
            kv_strategy=strategy,  # type: ignore[arg-type]
            pipeline_parallel=stages,
            max_batch_jobs=3,
            block_tokens=BLOCK,
            aging=aging,
            prefill_chunk_tokens=chunk,
            prefix_cache=shares,
        )
        self.scheduler = Scheduler(config, COST_FOR_MACHINES, device, host)
        self.transformer = Transformer()
        self.memories = Memories(self.transformer)
        self.jobs: list[Job] = []
        self.flights: deque[Flight] = deque()
        self.now = 0.0

    @rule(
        shared=st.integers(0, 16),
        own=st.lists(st.integers(0, 1), min_size=1, max_size=8),
        output=st.integers(1, 28),
        salt=st.sampled_from(["", "", "pepper"]),
        options=st.fixed_dictionaries(
            {"priority": st.integers(0, 1)},
            optional={"stop_tokens": st.just(frozenset([1])), "logit_bias": st.just(((0, 1.0),))},
        ),
    )
    def submit(self, shared: int, own: list[int], output: int, salt: str, options: dict[str, Any]) -> None:
        self._submit([0] * shared + own, output, salt, **options)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), own=st.lists(st.integers(0, 1), max_size=4), output=st.integers(1, 12))
    def submit_the_next_turn_of_a_chat(self, data: st.DataObject, own: list[int], output: int) -> None:
        before = data.draw(st.sampled_from(self.jobs))
        self._submit(before.tokens(0, before.context)[:36] + own, output, before.generation.cache_salt)

    def _submit(self, prompt: list[int], output: int, salt: str, **options: Any) -> None:
        room = LEAST_DEVICE_BLOCKS * BLOCK - len(prompt)
        generation = Generation(prompt=prompt, max_tokens=min(output, room), cache_salt=salt, **options)
        self.jobs.append(self.scheduler.submit(len(self.jobs), generation, self.now))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(data.draw(st.sampled_from(self.jobs)))

    @rule(ahead=st.booleans(), copied=st.booleans(), computed=st.booleans())
    def plan(self, ahead: bool, copied: bool, computed: bool) -> None:
        """Send a plan. Stages may copy at once, and compute at once if they have nothing else to do."""
        plan = self.scheduler.plan_ahead(self.now) if ahead else self.scheduler.plan(self.now)
        if plan is None:
            return
        flight = Flight(plan, copied=False, computed=False)
        if copied:
            self._copy(flight)
        if computed and all(earlier.computed for earlier in self.flights):
            self._compute(flight)
        self.flights.append(flight)

    @precondition(lambda self: self.flights)
    @rule(seconds=st.floats(0.1, 50.0))
    def commit(self, seconds: float) -> None:
        flight = self.flights.popleft()
        self._compute(flight)
        self._copy(flight)
        self.now += seconds
        entries = flight.plan.entries
        tokens = [self.transformer.next_token(self.jobs[e.job_id]) if e.sampling else None for e in entries]
        self.scheduler.commit(Result(flight.plan.seq, tokens, 0.0, 0.0), self.now)

    def _copy(self, flight: Flight) -> None:
        if not flight.copied:
            self.memories.copy(flight.plan)
        flight.copied = True

    def _compute(self, flight: Flight) -> None:
        if flight.plan.copies_first:
            self._copy(flight)
        if not flight.computed:
            self.memories.compute(flight.plan, self.jobs)
        flight.computed = True

    @rule(iterations=st.integers(1, 30), ahead=st.booleans(), copied=st.booleans())
    def go_on(self, iterations: int, ahead: bool, copied: bool) -> None:
        for _ in range(iterations):
            self.plan(ahead=False, copied=copied, computed=False)
            if ahead:
                self.plan(ahead=True, copied=copied, computed=False)
            if self.flights:
                self.commit(1.0)

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        """Free; or known to the prefix cache, held or not; or one job's own."""
        if not hasattr(self, "scheduler"):
            return
        ledger = self.scheduler.ledger
        holding = [job for job in self.jobs if job.device_blocks]
        own = [block for job in holding for block in job.device_blocks[len(job.prefix) :]]
        known = [cached.block for cached in tree(ledger.device.prefixes)]
        assert sorted(own + known + ledger.device._free) == list(range(ledger.device.num_blocks))
        on_host = [block for job in self.jobs for block in job.host_blocks]
        assert sorted(on_host + ledger.host._free) == list(range(ledger.host.num_blocks))

    @invariant()
    def shared_blocks_are_held_by_those_who_have_them(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        prefixes = self.scheduler.ledger.device.prefixes
        holding = [job for job in self.jobs if job.device_blocks]
        leaving = [job for job in holding if job.residence is Residence.OFFLOADING]
        for job in holding:
            assert list(job.device_blocks[: len(job.prefix)]) == [cached.block for cached in job.prefix]
        holders = Counter(cached for job in holding for cached in job.prefix)
        leavers = Counter(cached for job in leaving for cached in job.prefix)
        for cached in tree(prefixes):
            assert (cached.holders, cached.leaving) == (holders[cached], leavers[cached])
            assert (cached in prefixes._idle) == (not holders[cached])
            assert all(child.holders <= cached.holders for child in cached.children.values())

    @invariant()
    def blocks_that_will_be_free_are_those_of_leaving_jobs_alone(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        leaving = [job for job in self.jobs if job.residence is Residence.OFFLOADING]
        others = {b for job in self.jobs if job.residence is not Residence.OFFLOADING for b in job.device_blocks}
        blocks = {block for job in leaving for block in job.device_blocks}
        assert self.scheduler.ledger.departing == len(blocks - others)

    @invariant()
    def nobody_can_write_where_others_read(self) -> None:
        """A job writes from `computed` on: behind all that it shares."""
        if not hasattr(self, "scheduler"):
            return
        for job in self.jobs:
            if job.device_blocks:
                assert len(job.prefix) * BLOCK <= job.computed

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
        """Every job ends, and at rest all blocks are free, in the prefix cache or not."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            self.plan(ahead=False, copied=False, computed=False)
            if not self.flights:
                break
            self.commit(1.0)
        assert all(job.aborted or job.finish_reason in {"length", "stop"} for job in self.jobs), repr(self.scheduler)
        assert self.scheduler.ledger.device.num_used == self.scheduler.ledger.host.num_used == 0
        assert self.scheduler.ledger.departing == 0
        assert len(self.scheduler.queue) == 0


def tree(prefixes: PrefixCache) -> list[CachedBlock]:
    """All blocks of a prefix cache."""
    found = list(prefixes._first.values())
    for cached in found:  # grows on the way
        found += cached.children.values()
    return found


SchedulerMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase
