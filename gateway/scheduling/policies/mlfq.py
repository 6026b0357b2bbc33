"""Multi-level feedback queues: FastServe's skip-join form (4.1), and the naive one, where all join at the top."""

from itertools import count

from gateway.scheduling.aging import Aging
from gateway.scheduling.cost import CostModel
from gateway.scheduling.job import Job, Rank
from gateway.scheduling.levels import Levels
from gateway.scheduling.policies.policy import Outlook, Policy
from gateway.scheduling.queue import JobQueue

# A promoted job keeps its place for this many decode iterations at least: else moving its KV costs more than it gets.
PROMOTED_ITERATIONS = 8


class MultiLevelFeedbackQueue(Policy):
    """Rank (level, priority, sequence): in a level and priority first come, first served; the demoted go to the tail.

    A priority only delays: it is at least 0, and who starves is promoted past it.
    """

    def __init__(self, levels: Levels, cost: CostModel, aging: Aging, batch_jobs: int, *, skip: bool) -> None:
        self._levels = levels
        self._cost = cost
        self._aging = aging
        self._batch_jobs = batch_jobs
        self._skip = skip
        self._sequence = count()

    def join(self, job: Job, now: float) -> Rank:
        job.level = self._levels.covering(self._cost.prefill_s(job.pending)) if self._skip else 0
        job.joined_level = job.level
        self._aging.watch(job, self._levels.quanta[job.level])
        return self._enter(job, self._levels.quanta[job.level])

    def charge(self, job: Job, elapsed_s: float, next_s: float, now: float) -> Rank:
        job.used_s += elapsed_s
        # 1. It has quantum left, or nowhere to go: it keeps its place.
        if job.used_s < job.allowance_s or (job.level == self._levels.lowest and job.home_level is None):
            return job.rank
        # 2. A promoted job goes back to where it came from: it had waited there for this, not for a new start.
        if job.home_level is not None:
            job.level, job.home_level = job.home_level, None
        # 3. Its quantum is used up: down, as far as its next iteration needs.
        else:
            job.level = self._levels.below(job.level, next_s)
            job.counts.demotions += 1
        return self._enter(job, self._levels.quanta[job.level])

    def promotions(self, now: float, active: int) -> list[tuple[Job, Rank]]:
        starving = self._aging.starving(now, active, self._levels.quanta)
        return [(job, self._promote(job)) for job in starving if self._can_rise(job)]

    def outlook(self, queue: JobQueue, now: float) -> Outlook:
        """ENST(i) = min(T_promote(i), T_execute(i)), FastServe 4.2."""
        above = [queue.ahead((float(level),)) for level in range(self._levels.lowest + 1)]
        work_ahead_s = self._levels.work_ahead_s(above)
        active = len(queue)

        def enst(job: Job) -> float:
            ahead_in_level = queue.ahead(job.rank) - above[job.level]
            work_s = work_ahead_s[job.level] + ahead_in_level * self._levels.quanta[job.level]
            execute_s = work_s / self._batch_jobs
            promote_s = self._aging.seconds_left(job, self._levels.quanta[job.level], active, now)
            return min(promote_s, execute_s)

        return enst

    @staticmethod
    def _can_rise(job: Job) -> bool:
        return job.home_level is None and (job.level > 0 or job.generation.priority > 0)

    def _promote(self, job: Job) -> Rank:
        job.home_level, job.level = job.level, 0
        job.counts.promotions += 1
        need_s = self._cost.prefill_s(job.pending) if job.pending > 1 else self._cost.decode_s(1)
        return self._enter(job, max(self._levels.quanta[0] * PROMOTED_ITERATIONS, need_s))

    def _enter(self, job: Job, allowance_s: float) -> Rank:
        job.allowance_s = allowance_s
        job.used_s = 0.0
        priority = job.generation.priority if job.home_level is None else 0
        return (float(job.level), priority, next(self._sequence))
