"""Rotary positions: which frequencies a model has, and rotating queries and keys by them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model_spec import ModelSpec, RopeScaling
from worker.weights import Weights


@dataclass(frozen=True, slots=True)
class Rotation:
    """The angles of one batch, computed once and used by every layer."""

    cos: Tensor  # [tokens, 1, head_dim]
    sin: Tensor  # [tokens, 1, head_dim], the first half negated: it meets the halves of x exchanged

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x, [tokens, heads, head_dim]: dimension i together with dimension i + head_dim / 2."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class Rope:
    """The frequencies of a model."""

    def __init__(self, inverse_frequencies: Tensor) -> None:
        """inverse_frequencies: fp32 [head_dim / 2]."""
        self._inverse_frequencies = inverse_frequencies

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of tokens at `positions`, [tokens], for vectors of type `dtype`.

        The angles are fp32: bf16 cannot tell position 300 from 301.
        """
        angles = torch.outer(positions.float(), self._inverse_frequencies)  # [tokens, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        return Rotation(
            torch.cat((cos, cos), -1).to(dtype).unsqueeze(1),
            torch.cat((-sin, sin), -1).to(dtype).unsqueeze(1),
        )


def load_rope(spec: ModelSpec, weights: Weights) -> Rope:
    """The model's rotation; a tensor is read only where the checkpoint brings its own divisors."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float) / spec.head_dim
    frequencies = 1.0 / spec.rope_theta**exponents
    if spec.rope_scaling is not None:
        frequencies = _scaled(frequencies, spec.rope_scaling, weights)
    return Rope(frequencies.to(weights.device))


def _scaled(frequencies: Tensor, scaling: RopeScaling, weights: Weights) -> Tensor:
    if scaling.kind == "tensor":
        return frequencies / weights.get("rope_freqs.weight", len(frequencies), dtype=torch.float).cpu()
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's: slow frequencies are divided, fast ones kept, those between are blended."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divided, 1: kept
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
