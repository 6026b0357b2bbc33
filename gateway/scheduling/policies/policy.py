"""What a policy decides: the rank of a job when it arrives, after each of its iterations, and when it has waited."""

from collections.abc import Callable
from typing import Protocol

from gateway.scheduling.job import Job, Rank
from gateway.scheduling.queue import JobQueue

Outlook = Callable[[Job], float]  # estimated seconds until a job runs: ENST, the estimated next scheduled time


class Policy(Protocol):
    """Ranks jobs; policies subclass it. They change a job's level and allowance; the queue alone changes `job.rank`."""

    def join(self, job: Job, now: float) -> Rank:
        """The rank of a job that just arrived."""
        ...

    def charge(self, job: Job, elapsed_s: float, next_s: float, now: float) -> Rank:
        """The rank of a job after an iteration of `elapsed_s`, when its next one should take `next_s`."""
        ...

    def promotions(self, now: float, active: int) -> list[tuple[Job, Rank]]:
        """Jobs that have waited too long, with their new ranks. By default nobody ever has."""
        return []

    def opens(self, num_started: int) -> bool:
        """Whether jobs that never ran may start in this turn, when `num_started` others have. By default they may."""
        return True

    def outlook(self, queue: JobQueue, now: float) -> Outlook:
        """An estimate for this turn of when each job runs; larger means later.

        By default, as without quanta nothing better is known: who stands further back runs later.
        """
        return lambda job: float(queue.ahead(job.rank))
