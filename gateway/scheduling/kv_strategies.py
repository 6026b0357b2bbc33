"""What happens to waiting jobs' KV when the device fills up: proactive (FastServe 4.2) and the strawmen beside it.

A strategy decides who moves; the scheduler moves them. Decisions read jobs, lines and free counts, and change none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from common.config import KvStrategy as StrategyName
from gateway.scheduling.arrivals import ArrivalRate
from gateway.scheduling.blocks import BlockLedger, Vacancy
from gateway.scheduling.job import Job, Residence
from gateway.scheduling.policies.policy import Outlook
from gateway.scheduling.queue import JobQueue
from gateway.scheduling.turn import Turn

# Candidates that one turn looks at, from the far end of a line: bounds the work of a turn.
CANDIDATES = 32
# Share of the device pool that may be kept free for jobs to come.
MOST_RESERVED = 0.25
# Turns until an offload helps: ordered in one, landed before the next, its blocks usable in the one after.
TURNS_AHEAD = 2


@dataclass(slots=True)
class Moves:
    """Jobs whose KV starts to move with this plan, and jobs that lose it because no memory can hold it."""

    offload: list[Job] = field(default_factory=list)
    upload: list[Job] = field(default_factory=list)
    drop: list[Job] = field(default_factory=list)


class Memory:
    """What all strategies look at."""

    def __init__(
        self, queue: JobQueue, ledger: BlockLedger, arrivals: ArrivalRate, places: int, most_copies: int
    ) -> None:
        self.queue = queue
        self.ledger = ledger
        self.arrivals = arrivals
        self.places = places  # jobs that can be in flight
        self.most_copies = most_copies  # blocks that can be copied in one direction while an iteration computes

    def movable_from_the_end(self) -> Iterator[Job]:
        """Resident jobs that are in no plan, last in policy order first."""
        return (job for job in reversed(self.queue.resident) if not job.in_flight)

    def holds_started_jobs(self, missing: int, turn: Turn) -> bool:
        """The cap on started jobs: both pools must hold all their KV, with room to grow by a block each in flight."""
        ledger = self.ledger
        starting = 1 + sum(other.residence is Residence.NOWHERE for other in turn.batch)
        started = len(self.queue.resident) + len(self.queue.away) + starting
        needed = missing + min(self.places, started)
        free = turn.blocks_left + ledger.host.num_free + ledger.departing
        nobody = not self.queue.resident and not self.queue.away and not turn.batch
        return needed <= free or nobody


class KvStrategy:
    """Leaves all KV where it is; a strategy overrides what it does differently."""

    copies_first = False  # batches wait for their copies
    runs_from_host = False  # a job on the host may be put into a batch, its upload with it

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def may_start(self, job: Job, missing: int, turn: Turn) -> bool:
        """Whether a job that never ran, and is missing so many blocks, may start as far as memory is concerned."""
        return True

    def room_now(self, turn: Turn) -> list[Job]:
        """Jobs to drop, so that this turn made anew has room for the first that was blocked; empty if it must wait."""
        return []

    def moves(self, turn: Turn, outlook: Callable[[], Outlook]) -> Moves:
        """What to copy beside this turn's batch; called after the batch was made."""
        return Moves()


class Proactive(KvStrategy):
    """Offload who runs last before memory is full, upload who runs next before it runs; compute never waits."""

    def may_start(self, job: Job, missing: int, turn: Turn) -> bool:
        return self._memory.holds_started_jobs(missing, turn)

    def moves(self, turn: Turn, outlook: Callable[[], Outlook]) -> Moves:
        queue, ledger = self._memory.queue, self._memory.ledger
        reserve = self._reserve()
        if not turn.blocked and not queue.away and ledger.device.num_free >= reserve:
            return Moves()
        enst = outlook()
        moves = Moves()
        free = ledger.device.num_free
        waiting: list[Job] = []
        copies = self._memory.most_copies
        # 1. Upload, smallest ENST first, who is among the next to run. Nobody overtakes one that has no room yet.
        for job in sorted(turn.blocked + self._next_on_host(), key=enst):
            free -= ledger.missing(job)
            if free < 0:
                waiting.append(job)
            elif job.residence is Residence.HOST and copies > 0:
                moves.upload.append(job)
                copies -= len(job.host_blocks)
        # 2. Offload, largest ENST first, until those who wait and those who are expected will fit.
        deficit = reserve - free - ledger.departing
        if deficit > 0:
            self._offload(moves, deficit, waiting, enst)
        return moves

    def _reserve(self) -> int:
        """Blocks to keep free: for what should arrive while an offload is under way."""
        expected = self._memory.arrivals.blocks_ahead(TURNS_AHEAD)
        return min(int(expected), int(self._memory.ledger.device.num_blocks * MOST_RESERVED))

    def _next_on_host(self) -> list[Job]:
        """Jobs on the host that stand among those who run in this turn and the next.

        Jobs that have no KV do not count: who of them can start runs anyway, and who cannot must not keep others away.
        """
        queue, soon = self._memory.queue, 2 * self._memory.places
        found = []
        for ahead, job in enumerate(queue.away):
            if ahead + queue.resident.ahead(job.rank) >= soon:
                break
            if job.residence is Residence.HOST:
                found.append(job)
        return found

    def _offload(self, moves: Moves, deficit: int, waiting: list[Job], enst: Outlook) -> None:
        ledger = self._memory.ledger
        host_free, copies = ledger.host.num_free, self._memory.most_copies
        first = min((job.rank for job in waiting), default=None)
        soon = 2 * self._memory.places
        candidates = list(islice(self._memory.movable_from_the_end(), CANDIDATES))
        vacancy = Vacancy()
        for job in sorted(candidates, key=enst, reverse=True):
            if deficit <= 0 or copies <= 0:
                break
            # Never for somebody who runs later; and for those only expected, never who runs soon.
            if (job.rank <= first) if first is not None else (self._memory.queue.ahead(job.rank) < soon):
                continue
            size = ledger.blocks_for(job.computed)
            if size <= host_free:
                moves.offload.append(job)
                host_free -= size
                copies -= size
            elif waiting and not ledger.departing and not moves.offload:
                moves.drop.append(job)  # both memories are full: only recomputing it later lets anybody go on
            else:
                continue
            deficit -= vacancy.add(job)


class Reactive(KvStrategy):
    """Copy on the critical path: move KV only when a job is to run, and let the batch wait for it."""

    copies_first = True
    runs_from_host = True

    def may_start(self, job: Job, missing: int, turn: Turn) -> bool:
        return self._memory.holds_started_jobs(missing, turn)

    def moves(self, turn: Turn, outlook: Callable[[], Outlook]) -> Moves:
        moves = Moves()
        if not turn.blocked:
            return moves
        ledger = self._memory.ledger
        neediest = turn.blocked[0]
        deficit = ledger.missing(neediest) - ledger.device.num_free - ledger.departing
        host_free = ledger.host.num_free
        vacancy = Vacancy()
        for job in self._memory.movable_from_the_end():
            if deficit <= 0 or job.rank <= neediest.rank:
                break
            size = ledger.blocks_for(job.computed)
            if size <= host_free:
                moves.offload.append(job)
                host_free -= size
            elif not ledger.departing and not moves.offload:
                moves.drop.append(job)
            else:
                continue
            deficit -= vacancy.add(job)
        return moves


class Recompute(KvStrategy):
    """Drop the KV of the last in order, and compute it again when the job's turn comes."""

    def room_now(self, turn: Turn) -> list[Job]:
        if not turn.blocked:
            return []
        victims: list[Job] = []
        neediest, missing = turn.blocked[0], turn.shortage
        vacancy = Vacancy()
        for victim in self._memory.movable_from_the_end():
            if missing <= 0 or victim.rank <= neediest.rank:
                break
            victims.append(victim)
            missing -= vacancy.add(victim)
        return victims if missing <= 0 else []


class Defer(KvStrategy):
    """Start a job only when the device can hold it to its longest end; nothing ever moves."""

    def may_start(self, job: Job, missing: int, turn: Turn) -> bool:
        starting = [other for other in turn.batch if other.residence is Residence.NOWHERE]
        promised = sum(map(self._longest, self._memory.queue.resident)) + sum(map(self._longest, starting))
        return promised + self._longest(job) <= self._memory.ledger.device.num_blocks

    def _longest(self, job: Job) -> int:
        return self._memory.ledger.blocks_for(len(job.generation.prompt) + job.generation.max_tokens)


STRATEGIES: dict[StrategyName, Callable[[Memory], KvStrategy]] = {
    "proactive": Proactive,
    "reactive": Reactive,
    "recompute": Recompute,
    "defer": Defer,
}
