"""What an iteration costs in time, as the scheduler sees it: a measured profile, or a constant model for examples."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Protocol

import msgspec


class CostModel(Protocol):
    """Predicted seconds of one iteration, through all stages."""

    def prefill_s(self, tokens: int) -> float:
        """An iteration that computes `tokens` prompt tokens of one job."""
        ...

    def decode_s(self, jobs: int) -> float:
        """An iteration that computes one token for each of `jobs` jobs."""
        ...


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Constant decode time, prefill linear in the prompt: the model of worked examples."""

    decode: float
    prefill_per_token: float

    def prefill_s(self, tokens: int) -> float:
        return max(self.decode, tokens * self.prefill_per_token)

    def decode_s(self, jobs: int) -> float:
        return self.decode


class Profile(msgspec.Struct, frozen=True):
    """Measured times, interpolated between the points and continued along the last two."""

    prefill: list[tuple[int, float]]  # (tokens, seconds), ascending
    decode: list[tuple[int, float]]  # (jobs, seconds), ascending

    def prefill_s(self, tokens: int) -> float:
        return _interpolate(self.prefill, tokens)

    def decode_s(self, jobs: int) -> float:
        return _interpolate(self.decode, jobs)


def _interpolate(points: list[tuple[int, float]], x: int) -> float:
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = min(bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return max(points[0][1], y0 + (y1 - y0) * (x - x0) / (x1 - x0))
