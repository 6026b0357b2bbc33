"""Matrix products, nearly all of the work: a plain one, and one whose weights oneDNN has laid out for this CPU.

The packed product takes about half the time of the plain one where a batch is small, as it is in decoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.weights import Weights

Linear = Callable[[Tensor], Tensor]  # [rows, in] to [rows, out]


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """The reference, on any device."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """oneDNN's; `torch.compile` makes the same two calls."""

    weight: Tensor  # [out, in], in a layout that only oneDNN reads
    bias: Tensor | None  # [out]

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None) -> "PackedLinear":
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        if weight.dtype == torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if weight.dtype == torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        return weight.dtype == torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return product


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest product with `weight`, [out, in], that there is for its device and type."""
    return PackedLinear.pack(weight, bias) if PackedLinear.supports(weight) else PlainLinear(weight, bias)


def load_linear(weights: Weights, name: str, out: int, ins: int, *, bias: bool) -> Linear:
    """The product with `{name}.weight`, plus `{name}.bias` if `bias`."""
    return load_stacked(weights, [name], [out], ins, bias=bias)


def load_stacked(weights: Weights, names: Sequence[str], outs: Sequence[int], ins: int, *, bias: bool) -> Linear:
    """One product for several matrices that read the same input, stacked: it is faster than one for each."""
    matrices = [weights.get(f"{name}.weight", out, ins) for name, out in zip(names, outs, strict=True)]
    biases = [weights.get(f"{name}.bias", out) for name, out in zip(names, outs, strict=True)] if bias else []
    return linear(_stack(matrices), _stack(biases) if bias else None)


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
