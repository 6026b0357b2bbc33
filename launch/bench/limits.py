"""What a device can do at best: how fast it reads memory and multiplies, by torch, and what follows for a model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.model_spec import ModelSpec

# Bytes, more than any cache holds, and rows of a square matrix, enough for all processors.
_SIZES = {"cpu": (2**29, 1536), "cuda": (2**31, 8192)}
_TRIES = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """The best of some tries, with the threads that torch has now."""

    bytes_per_s: float
    flops_per_s: float  # of products of matrices


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least time that an iteration of a model can take."""

    limits: Limits
    spec: ModelSpec
    weight_bytes: float  # of a number in a matrix, on average
    kv_bytes: int  # of a token in the KV cache

    def decode_s(self, jobs: int, context: int) -> float:
        """Every weight but the embedding is read once, and every key and value of the contexts."""
        head = self.spec.vocab_size * self.spec.hidden_size
        weights = (self.spec.num_layers * self.spec.layer_parameters() + head) * self.weight_bytes
        kv = jobs * context * self.kv_bytes
        return (weights + kv) / self.limits.bytes_per_s

    def prompt_s(self, tokens: int) -> float:
        """Two operations for each token and weight, four for each two tokens that meet and number of their heads."""
        weights = self.spec.num_layers * self.spec.layer_parameters()
        pairs = tokens * (tokens + 1) // 2 * self.spec.num_layers * self.spec.num_heads * self.spec.head_dim
        return (2 * tokens * weights + 4 * pairs) / self.limits.flops_per_s


def measure_limits(device: str = "cpu", dtype: str = "float32") -> Limits:
    """Takes two seconds. dtype: of the products, as torch calls it."""
    import torch  # noqa: PLC0415 - a command line that measures nothing needs no torch

    num_bytes, rows = _SIZES[device]
    memory = torch.ones(num_bytes // 4, device=device)
    left, right = torch.ones(2, rows, rows, device=device, dtype=getattr(torch, dtype)).unbind(0)

    def best_s(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return Limits(
        bytes_per_s=num_bytes / best_s(lambda: torch.dot(memory, memory)),  # `max` reads two thirds as fast on a CPU
        flops_per_s=2 * rows**3 / best_s(lambda: torch.mm(left, right)),
    )
