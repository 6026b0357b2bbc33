"""What a machine can do at best: how fast it reads memory and multiplies, by torch. Bounds, not promises."""

import time
from collections.abc import Callable
from dataclasses import dataclass

_READ_BYTES = 512 * 2**20  # more than any cache holds
_MATRIX = 1536
_TRIES = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """The best of some tries, with the threads that torch has now."""

    bytes_per_s: float
    flops_per_s: float  # of fp32 products


def measure_limits() -> Limits:
    """Takes two seconds."""
    import torch  # noqa: PLC0415 - a command line that measures nothing needs no torch

    memory = torch.ones(_READ_BYTES // 4)
    left, right = torch.ones(_MATRIX, _MATRIX), torch.ones(_MATRIX, _MATRIX)
    return Limits(
        bytes_per_s=_READ_BYTES / _best_s(memory.max),
        flops_per_s=2 * _MATRIX**3 / _best_s(lambda: torch.mm(left, right)),
    )


def _best_s(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
