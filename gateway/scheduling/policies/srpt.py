"""Shortest remaining processing time first: an oracle that must be told the output's length. For experiments."""

from itertools import count

from gateway.scheduling.cost import CostModel
from gateway.scheduling.job import Job, Rank
from gateway.scheduling.policies.policy import Policy


class ShortestRemainingFirst(Policy):
    """Rank: seconds of service still needed, alone on the machine."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._sequence = count()

    def join(self, job: Job, now: float) -> Rank:
        return (self._remaining_s(job), 0, next(self._sequence))

    def charge(self, job: Job, elapsed_s: float, next_s: float, now: float) -> Rank:
        return (self._remaining_s(job), 0, job.rank[2])

    def _remaining_s(self, job: Job) -> float:
        if job.pending > 1:  # its next iteration is a prefill, which gives the first of the remaining tokens
            return self._cost.prefill_s(job.pending) + (job.remaining - 1) * self._cost.decode_s(1)
        return job.remaining * self._cost.decode_s(1)
