"""First come, first served: jobs join and leave the batch at every token, and run to completion (Orca)."""

from itertools import count

from gateway.scheduling.job import Job, Rank
from gateway.scheduling.policies.policy import Policy


class FirstComeFirstServed(Policy):
    def __init__(self) -> None:
        self._sequence = count()

    def join(self, job: Job, now: float) -> Rank:
        return (0.0, 0, next(self._sequence))

    def charge(self, job: Job, elapsed_s: float, next_s: float, now: float) -> Rank:
        return job.rank
