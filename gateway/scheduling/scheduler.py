"""The scheduler: `plan` decides an iteration, `commit` takes in its result. Pure: time and costs are parameters.

One turn: promote who waited too long; walk the jobs in policy order and fill a batch within a throw-away budget; let
the KV strategy decide which copies go beside it. Both the server and a simulator drive these same objects.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import msgspec

from common.config import Config
from common.records import Entry, Logprobs, Plan, Result
from gateway.generation import FinishReason, Generation
from gateway.scheduling.aging import Aging
from gateway.scheduling.arrivals import ArrivalRate
from gateway.scheduling.blocks import BlockLedger
from gateway.scheduling.cost import CostModel
from gateway.scheduling.entries import entry_of
from gateway.scheduling.job import Job, Residence
from gateway.scheduling.kv_strategies import STRATEGIES, KvStrategy, Memory, Moves
from gateway.scheduling.levels import Levels
from gateway.scheduling.policies.fcfs import FirstComeFirstServed
from gateway.scheduling.policies.mlfq import MultiLevelFeedbackQueue
from gateway.scheduling.policies.policy import Policy
from gateway.scheduling.policies.srpt import ShortestRemainingFirst
from gateway.scheduling.policies.static import StaticBatches
from gateway.scheduling.queue import JobQueue, merge
from gateway.scheduling.turn import Share, Turn


class Outcome(msgspec.Struct, frozen=True):
    """What an iteration did for one job."""

    job: Job
    token: int | None  # to be emitted; a stop token is not
    finish_reason: FinishReason | None
    logprobs: Logprobs | None  # of the token, where they were asked for


class Expected(msgspec.Struct, frozen=True):
    """What is known of an iteration before it has run."""

    tokens: int  # that it computes
    seconds: float  # that it should take at least


@dataclass(slots=True)
class _InFlight:
    seq: int
    begun_at: float  # when it was planned, or had fewer plans before it than there are stages
    batch: dict[Job, Share]
    moves: Moves
    crowded: bool  # somebody who would have run lacked memory


def make_policy(config: Config, cost: CostModel) -> Policy:
    if config.policy == "fcfs":
        return FirstComeFirstServed()
    if config.policy == "static":
        return StaticBatches()
    if config.policy == "srpt":
        return ShortestRemainingFirst(cost)
    quantum_s = cost.decode_s(1) if config.quantum_ms is None else config.quantum_ms / 1000
    levels = Levels(config.num_levels, quantum_s, config.quantum_growth)
    places = config.batch_jobs * config.pipeline_parallel
    limit_s = None if config.aging_limit_ms is None else config.aging_limit_ms / 1000
    aging = Aging(config.aging, places, limit_s)
    return MultiLevelFeedbackQueue(levels, cost, aging, places, skip=config.policy == "skip-join")


class Scheduler:
    """Holds all active jobs. At most `pipeline_parallel` plans are in flight, and one that was made ahead.

    A job that decodes is in at most one of them, and with one stage also in that made ahead. One that prefills may be
    in all, chunk by chunk: a stage computes the next chunk while later stages are at the one before.
    """

    def __init__(
        self,
        config: Config,
        cost: CostModel,
        num_device_blocks: int,
        num_host_blocks: int,
        *,
        first_seq: int = 1,
    ) -> None:
        self._config = config
        self._cost = cost
        self._policy = make_policy(config, cost)
        self.queue = JobQueue()
        self.ledger = BlockLedger(
            self.queue,
            num_device_blocks,
            num_host_blocks,
            config.block_tokens,
            share_prefixes=config.prefix_cache,
        )
        self._arrivals = ArrivalRate()
        places = config.batch_jobs * config.pipeline_parallel
        # At least one: who waits for room must get some, and be it late.
        most_copies = max(1, int(cost.decode_s(config.batch_jobs) / cost.copy_s)) if cost.copy_s else num_device_blocks
        memory = Memory(self.queue, self.ledger, self._arrivals, places, most_copies)
        self._strategy: KvStrategy = STRATEGIES[config.kv_strategy](memory)
        # A stage is to have the next chunk while later stages are at the one before.
        chunk = -(-config.prefill_chunk_tokens // config.pipeline_parallel)
        self._prompt_tokens = chunk or config.max_batch_tokens  # in one iteration, at most
        self._flights: deque[_InFlight] = deque()
        self._seq = first_seq - 1
        self._num_started = 0

    # ------------------------------------------------------------------------------------------ jobs in and out

    def submit(self, job_id: int, generation: Generation, now: float) -> Job:
        job = Job(job_id, generation, arrival=now, waiting_since=now)
        self._arrivals.arrived(self.ledger.missing(job))
        self.queue.add(job, self._policy.join(job, now))
        return job

    def abort(self, job: Job) -> None:
        """Forget the job: now if nothing touches its blocks, else when its plan is committed. Idempotent."""
        if job.finish_reason is not None or job.aborted:
            return
        job.aborted = True
        if not self._is_held(job):
            self._remove(job)

    # ------------------------------------------------------------------------------------------ one iteration

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    def expected(self) -> Expected:
        """Of the oldest plan in flight. There is one."""
        batch = self._flights[0].batch.values()
        prompts = sum(share.tokens for share in batch if share.prefills)
        seconds = max(self._cost.decode_s(max(1, len(batch))), self._cost.prefill_s(prompts) if prompts else 0.0)
        return Expected(sum(share.tokens for share in batch), seconds)

    @property
    def num_waiting(self) -> int:
        """Jobs that never ran."""
        return len(self.queue) - self._num_started

    def plan(self, now: float, epoch: int = 0) -> Plan | None:
        """The next iteration, or None: nothing can run, or enough plans are in flight."""
        if self.num_in_flight >= self._config.pipeline_parallel:
            return None
        self._begin_turn(now)
        turn = self._walk()
        while victims := self._strategy.room_now(turn):
            self._drop(victims)
            turn = self._walk()
        return self._order(turn, now, epoch)

    def plan_ahead(self, now: float, epoch: int = 0) -> Plan | None:
        """One iteration more than there are stages, so that the first has it before a result is seen.

        A stage that is alone goes on with the jobs in flight, their tokens unseen. The first of several does not know
        what the last one draws: it gets other jobs, where they fill an iteration.

        None where the result decides more: what a penalty or a grammar makes of the next token, or whose KV can make
        room for others.
        """
        stages, most_jobs = self._config.pipeline_parallel, self._config.batch_jobs
        if self.num_in_flight != stages or any(flight.crowded for flight in self._flights):
            return None
        if stages > 1:
            may_go_on = len(self.queue) > stages * most_jobs
        else:
            batch = self._flights[0].batch
            may_go_on = not any(job.is_shaped or job.residence is not Residence.DEVICE for job in batch)
        if not may_go_on:
            return None
        self._begin_turn(now)
        turn = self._walk(ahead=stages == 1)
        if turn.blocked or not turn.batch:
            return None
        is_full = len(turn.batch) == most_jobs or not turn.prompt_tokens_left
        # One more with few jobs would take nearly as long as one with many.
        return self._order(turn, now, epoch) if stages == 1 or is_full else None

    def _order(self, turn: Turn, now: float, epoch: int) -> Plan | None:
        """Make a plan of a turn; None if there is nothing to do in it."""
        self._hold(turn.batch)
        uploads, entries = list[tuple[int, int]](), list[Entry]()
        for job, share in turn.batch.items():
            uploads += self._start(job, now)
            entries.append(entry_of(job, share))
            job.depart(share.tokens, gives=share.gives)
        moves = self._strategy.moves(turn, lambda: self._policy.outlook(self.queue, now))
        self._drop(moves.drop)
        self._hold(moves.upload)
        offloads = [pair for job in moves.offload for pair in self.ledger.offload(job)]
        uploads += [pair for job in moves.upload for pair in self.ledger.upload(job)]
        moves.upload += [job for job in turn.batch if job.residence is Residence.UPLOADING]
        if not turn.batch and not moves.offload and not moves.upload:
            # What was just dropped made room for somebody. Ends: every round drops a job that was resident.
            return self.plan(now, epoch) if moves.drop else None
        self._seq += 1
        self._flights.append(_InFlight(self._seq, now, turn.batch, moves, crowded=bool(turn.blocked)))
        return Plan(self._seq, epoch, entries, offloads, uploads, self._strategy.copies_first)

    def commit(self, result: Result, now: float) -> list[Outcome]:
        """Take in the oldest plan's result: tokens, charges, landed copies. Returns what to tell the clients."""
        flight = self._flights.popleft()
        assert result.seq == flight.seq, f"result {result.seq} for plan {flight.seq}"
        assert len(result.tokens) == len(flight.batch), f"{len(result.tokens)} tokens for {len(flight.batch)} jobs"
        for job in flight.moves.offload:
            self.ledger.land_offload(job)
        for job in flight.moves.upload:
            self.ledger.land_upload(job)
        elapsed_s = now - flight.begun_at
        stages = self._config.pipeline_parallel
        if len(self._flights) >= stages:
            self._flights[stages - 1].begun_at = now
        unknowing = self._seq if stages > 1 else flight.seq  # the newest plan that was made without this result
        decode_s = self._cost.decode_s(max(1, len(flight.batch)))
        outcomes = []
        for job, scores in zip(flight.batch, result.scores, strict=False):
            job.take_scores(scores)
        logprobs = result.logprobs or [None] * len(flight.batch)
        for (job, share), token, said in zip(flight.batch.items(), result.tokens, logprobs, strict=True):
            job.land(share.tokens)
            job.last_seq = max(job.last_seq or 0, unknowing)
            if job.aborted or job.finish_reason is not None:  # It may have ended before this plan, made ahead, began.
                continue
            _attribute(job, share, elapsed_s)
            job.waiting_since = now
            if share.gives:
                outcomes.append(self._advance(job, token, said))
            if job.finish_reason != "error":
                self.ledger.publish(job)
            if job.finish_reason is None:
                next_s = self._cost.prefill_s(job.pending) if job.prefills else decode_s
                rank = self._policy.charge(job, elapsed_s, next_s, now)
                if rank is not job.rank:
                    self.queue.rerank(job, rank)
        touched = (*flight.batch, *flight.moves.offload, *flight.moves.upload)
        for job in dict.fromkeys(job for job in touched if job.aborted or job.finish_reason):
            if not self._is_held(job):
                self._remove(job)
        return outcomes

    # ------------------------------------------------------------------------------------------ inside a turn

    def _begin_turn(self, now: float) -> None:
        self._arrivals.turn()
        for job, rank in self._policy.promotions(now, len(self.queue)):
            self.queue.rerank(job, rank)

    def _walk(self, *, ahead: bool = False) -> Turn:
        """Take jobs in policy order until the budget is spent. Changes no job's place and no block.

        ahead: also those whose next token is drawn by a plan in flight.
        """
        turn = Turn(
            jobs_left=self._batch_limit(),
            tokens_left=self._config.max_batch_tokens,
            prompt_tokens_left=self._prompt_tokens,
            blocks_left=self.ledger.device.num_free,
            cold_open=True,
        )
        for job in merge(*self._runnable(turn)):
            if not turn.jobs_left:
                break
            if job.can_run and (not job.in_flight or job.may_join(ahead=ahead)):
                self._fit(job, turn)
        return turn

    def _runnable(self, turn: Turn) -> list[Iterator[Job]]:
        opens = self._policy.opens(self._num_started)
        # A policy that does not open runs first come, first served: behind one that never started, nobody has.
        cold = takewhile(lambda job: turn.cold_open and (opens or job.started_at is not None), self.queue.cold)
        lines = [iter(self.queue.resident), cold]
        if self._strategy.runs_from_host:
            lines.append(job for job in self.queue.away if job.residence is Residence.HOST)
        return lines

    def _fit(self, job: Job, turn: Turn) -> None:
        missing = self.ledger.missing(job)  # looks up what the prefix cache has: its share is of the rest
        share = turn.share(job)
        if not share.tokens:
            turn.cold_open = False  # in order: no later prompt overtakes one that must wait for tokens
        elif job.started_at is None and not self._strategy.may_start(job, missing, turn):
            turn.pass_over(job)
        elif missing > turn.blocks_left:
            turn.block(job, missing)
        else:
            job.passed_over = 0
            turn.take(job, share, missing)

    def _batch_limit(self) -> int:
        """With a pipeline, leave jobs for the other micro-batches: idle stages cost more than smaller batches."""
        if self._config.pipeline_parallel == 1:
            return self._config.batch_jobs
        held = {job for flight in self._flights for job in flight.batch if not job.may_join(ahead=False)}
        ready = len(self.queue) - len(held)
        slots = max(1, self._config.pipeline_parallel - self.num_in_flight)
        return min(self._config.batch_jobs, -(-ready // slots))

    def _hold(self, jobs: Iterable[Job]) -> None:
        """First all of them: the blocks that one takes must not be those that another found."""
        for job in jobs:
            if not job.device_blocks:
                self.ledger.hold(job)

    def _start(self, job: Job, now: float) -> list[tuple[int, int]]:
        """Put a job into the plan that is being made: give it its blocks. Returns the copies that this takes."""
        uploads: list[tuple[int, int]] = []
        if job.residence is Residence.HOST:
            uploads = self.ledger.upload(job)
        self.ledger.grow(job)
        if job.started_at is None:
            job.started_at = now
            job.counts.cached_tokens = job.computed
            self._num_started += 1
        elif job.last_seq is not None and self._seq > job.last_seq:
            job.counts.preemptions += 1
        job.last_seq = self._seq + 1
        return uploads

    def _drop(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.ledger.release(job)
            job.counts.recomputes += 1

    # ------------------------------------------------------------------------------------------ after a result

    def _advance(self, job: Job, token: int | None, logprobs: Logprobs | None) -> Outcome:
        """Give the job its next token; all before it is computed."""
        generation = job.generation
        if not generation.max_tokens:  # only its prompt was wanted
            job.finish_reason, token, logprobs = "length", None, None
        elif token is None:
            job.finish_reason = "error"
        elif token in generation.stop_tokens:
            job.finish_reason, token, logprobs = "stop", None, None
        else:
            job.output.append(token)
            if len(job.output) >= generation.max_tokens:
                job.finish_reason = "length"
        return Outcome(job, token, job.finish_reason, logprobs)

    def _is_held(self, job: Job) -> bool:
        return job.in_flight > 0 or job.residence in (Residence.OFFLOADING, Residence.UPLOADING)

    def _remove(self, job: Job) -> None:
        self.ledger.release(job)
        self.queue.remove(job)
        self._num_started -= job.started_at is not None

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r}, {self.num_in_flight} in flight | {self.ledger!r}>"


def _attribute(job: Job, share: Share, elapsed_s: float) -> None:
    job.counts.iterations += 1
    job.attained_s += elapsed_s
    if share.prefills:
        job.counts.prefill_s += elapsed_s
    else:
        job.counts.decode_s += elapsed_s
