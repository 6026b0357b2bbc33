"""What an iteration costs in time, as the scheduler sees it: a measured profile, or a constant model for examples."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Protocol

import msgspec


class CostModel(Protocol):
    """Predicted seconds of one iteration, through all stages, and of KV copies."""

    @property
    def copy_s(self) -> float:
        """To move one KV block between device and host, in all stages at once; 0 where that is not known."""
        ...

    def prefill_s(self, tokens: int) -> float:
        """An iteration that computes `tokens` prompt tokens of one job."""
        ...

    def decode_s(self, jobs: int) -> float:
        """An iteration that computes one token for each of `jobs` jobs."""
        ...


class IterationCost(CostModel, Protocol):
    """Also knows iterations of any mix, as a simulator needs it; the scheduler never asks."""

    def iteration_s(self, prefill_tokens: int, decode_jobs: int, context_tokens: int) -> float:
        """An iteration of both prompt tokens and decoding jobs, whose contexts have `context_tokens` in all."""
        ...


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Constant decode time, or time in proportion to the tokens where that is longer.

    This is a roofline: weights are read once in an iteration, however few tokens use them, until arithmetic takes
    longer than reading. Also the model of worked examples.
    """

    decode: float
    prefill_per_token: float
    copy_s: float = 0.0

    def prefill_s(self, tokens: int) -> float:
        return max(self.decode, tokens * self.prefill_per_token)

    def decode_s(self, jobs: int) -> float:
        return self.decode

    def iteration_s(self, prefill_tokens: int, decode_jobs: int, context_tokens: int) -> float:
        return self.prefill_s(prefill_tokens + decode_jobs)


class Profile(msgspec.Struct, frozen=True):
    """Measured times, interpolated between the points and continued along the last two."""

    prefill: list[tuple[int, float]]  # (tokens, seconds), ascending
    decode: list[tuple[int, float]]  # (jobs, seconds), ascending
    decode_context: int = 0  # tokens that each job of `decode` had before it
    context_s: float = 0.0  # what a token more in the context of a decoding job adds
    copy_s: float = 0.0
    block_tokens: int = 16
    block_bytes: int = 0  # of one KV block, summed over the stages
    stages: int = 1

    def prefill_s(self, tokens: int) -> float:
        return _interpolate(self.prefill, tokens)

    def decode_s(self, jobs: int) -> float:
        return _interpolate(self.decode, jobs)

    def iteration_s(self, prefill_tokens: int, decode_jobs: int, context_tokens: int) -> float:
        if not prefill_tokens:
            unlike_profile = context_tokens - decode_jobs * self.decode_context
            return max(0.0, self.decode_s(decode_jobs) + self.context_s * unlike_profile)
        # A decoding job's token goes through the same matrices as a prompt's; only its attention is extra.
        return self.prefill_s(prefill_tokens + decode_jobs) + self.context_s * context_tokens


def _interpolate(points: list[tuple[int, float]], x: int) -> float:
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = min(bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return max(points[0][1], y0 + (y1 - y0) * (x - x0) / (x1 - x0))
