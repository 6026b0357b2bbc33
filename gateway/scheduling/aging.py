"""Who has waited too long. Relative, not absolute: a limit of 300 ms, as in the paper, thrashes under overload.

A job starves when its waiting time exceeds `factor` times the service that it attained (at least its level's
quantum), times the active jobs per batch place: with ten jobs for each place, a wait of ten quanta is a fair share,
not starvation. For experiments there is the paper's absolute limit, alpha, too.
"""

import heapq
import math

from gateway.scheduling.job import Job


class Aging:
    """One heap entry per job, checked again when it comes up: O(log jobs) per job that waits long."""

    def __init__(self, factor: float, places: int, limit_s: float | None = None) -> None:
        """`limit_s` takes the place of what follows from `factor`."""
        self._factor = factor
        self._places = places
        self._limit_s = limit_s
        self._due: list[tuple[float, int, Job]] = []

    def watch(self, job: Job, quantum_s: float) -> None:
        if self._promotes:
            heapq.heappush(self._due, (self._deadline(job, quantum_s, 0), job.id, job))

    def seconds_left(self, job: Job, quantum_s: float, active: int, now: float) -> float:
        """Time until `job` starves if it goes on waiting: the paper's T_promote."""
        if not self._promotes:
            return math.inf
        return max(0.0, self._deadline(job, quantum_s, active) - now)

    def starving(self, now: float, active: int, quanta: list[float]) -> list[Job]:
        """Jobs whose time is up; each stays watched."""
        if len(self._due) > 2 * active + 64:  # mostly jobs that ended: let go of them
            self._due = [entry for entry in self._due if not _ended(entry[2])]
            heapq.heapify(self._due)
        found = []
        while self._due and self._due[0][0] <= now:
            _, _, job = heapq.heappop(self._due)
            if _ended(job):
                continue
            deadline = self._deadline(job, quanta[job.level], active)
            if deadline <= now and not job.in_flight:
                found.append(job)
                deadline = now
            # Not before another full limit, so that a job in flight or just promoted is not looked at in every turn.
            heapq.heappush(self._due, (max(deadline, now + quanta[job.level]), job.id, job))
        return found

    @property
    def _promotes(self) -> bool:
        return self._factor > 0 or self._limit_s is not None

    def _deadline(self, job: Job, quantum_s: float, active: int) -> float:
        if self._limit_s is not None:
            return job.waiting_since + self._limit_s
        crowding = max(1.0, active / self._places)
        return job.waiting_since + self._factor * max(job.attained_s, quantum_s) * crowding


def _ended(job: Job) -> bool:
    return job.finish_reason is not None or job.aborted
