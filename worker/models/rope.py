"""Rotary positions: which frequencies a model has, and rotating queries and keys by them."""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.model_spec import ModelSpec, RopeScaling
from worker.native.library import open_library
from worker.weights import Weights


class Rotation(Protocol):
    """The angles of one batch, computed once and used by every layer."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x, [tokens, heads, head_dim]: dimension i together with dimension i + head_dim / 2.

        What x holds afterwards is of no consequence.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainRotation:
    """In torch, on any device."""

    cos: Tensor  # [tokens, head_dim]
    sin: Tensor  # [tokens, head_dim], the first half negated: it meets the halves of x exchanged

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(x * self.cos[:, None], x.roll(x.shape[-1] // 2, -1), self.sin[:, None])


@dataclass(frozen=True, slots=True)
class NativeRotation:
    """By the native kernel, in place. cos and sin as above, fp32."""

    _rotate: Callable[..., None]
    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        tokens, heads, head_dim = x.shape
        assert x.stride()[1:] == (head_dim, 1), f"heads with strides {x.stride()}"
        self._rotate(x.data_ptr(), x.stride(0), tokens, heads, head_dim, self.cos.data_ptr(), self.sin.data_ptr())
        return x


class Rope:
    """The frequencies of a model."""

    def __init__(self, inverse_frequencies: Tensor) -> None:
        """inverse_frequencies: fp32 [head_dim / 2]."""
        self._inverse_frequencies = inverse_frequencies
        self._rotate = _native() if inverse_frequencies.device.type == "cpu" else None

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of tokens at `positions`, [tokens], for vectors of type `dtype`.

        The angles are fp32: bf16 cannot tell position 300 from 301.
        """
        angles = torch.outer(positions.float(), self._inverse_frequencies)  # [tokens, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        cosines, sines = torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
        if self._rotate is not None and dtype == torch.float32:
            return NativeRotation(self._rotate, cosines, sines)
        return PlainRotation(cosines, sines)


def _native() -> Callable[..., None] | None:
    library = open_library()
    if library is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.rotate.argtypes = (pointer, number, number, number, number, pointer, pointer)
    library.rotate.restype = None
    return library.rotate


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
