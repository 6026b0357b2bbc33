"""The levels of the multi-level feedback queue: their quanta, and which level covers what (FastServe 4.1)."""

from bisect import bisect_left
from itertools import accumulate


class Levels:
    """Quanta that grow by a constant factor. Level 0 is the highest. The lowest level's quantum never runs out."""

    def __init__(self, num_levels: int, quantum_s: float, growth: float) -> None:
        self.quanta = [quantum_s * growth**level for level in range(num_levels)]
        # passed[l]: service of a job that was demoted from level 0 all the way to l.
        self.passed = [0.0, *accumulate(self.quanta)]

    @property
    def lowest(self) -> int:
        return len(self.quanta) - 1

    def covering(self, iteration_s: float) -> int:
        """The highest level whose quantum covers an iteration; the lowest if none does."""
        return min(bisect_left(self.quanta, iteration_s), self.lowest)

    def below(self, level: int, next_iteration_s: float) -> int:
        """Where a job goes that used up `level`: the next one, or further down if that covers no iteration."""
        return min(max(level + 1, self.covering(next_iteration_s)), self.lowest)

    def work_ahead_s(self, level: int, jobs_per_level: list[int], ahead_in_level: int) -> float:
        """Service that the jobs ahead take before a job at `level` runs: the sum in the paper's T_execute.

        A job at a higher level l uses the quanta of l .. level-1 until it stands behind; one ahead at the same
        level uses one quantum.
        """
        higher = sum(
            count * (self.passed[level] - self.passed[upper]) for upper, count in enumerate(jobs_per_level[:level])
        )
        return higher + ahead_in_level * self.quanta[level]
