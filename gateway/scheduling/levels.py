"""The levels of the multi-level feedback queue: their quanta, and which level covers what (FastServe 4.1)."""

from bisect import bisect_left


class Levels:
    """Quanta that grow by a constant factor. Level 0 is the highest. The lowest level's quantum never runs out."""

    def __init__(self, num_levels: int, quantum_s: float, growth: float) -> None:
        self.quanta = [quantum_s * growth**level for level in range(num_levels)]

    @property
    def lowest(self) -> int:
        return len(self.quanta) - 1

    def covering(self, iteration_s: float) -> int:
        """The highest level whose quantum covers an iteration; the lowest if none does."""
        return min(bisect_left(self.quanta, iteration_s), self.lowest)

    def below(self, level: int, next_iteration_s: float) -> int:
        """Where a job goes that used up `level`: the next one, or further down if that covers no iteration."""
        return min(max(level + 1, self.covering(next_iteration_s)), self.lowest)

    def work_ahead_s(self, jobs_above: list[int]) -> list[float]:
        """For the first job of each level, the service that others take before it runs: the sum in T_execute.

        jobs_above[l] counts the jobs at levels higher than l. Each of them uses the quanta from its own level to the
        one above l until it stands behind, so going down a level adds that level's quantum for every job above.
        """
        work = [0.0]
        for quantum_s, above in zip(self.quanta, jobs_above[1:], strict=False):
            work.append(work[-1] + quantum_s * above)
        return work
