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


# oneDNN keeps code for every number of rows that it has seen, for each matrix, up to a megabyte each: gigabytes after
# a day of prompts of all lengths. So it is shown few numbers: those of decoding as they are, and steps beyond.
_EXACT_ROWS = 16
_MOST_ROWS = 2048


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
        rows = len(x)
        if rows <= _EXACT_ROWS:
            return self._product(x)
        if rows <= _MOST_ROWS:
            padding = padded_rows(rows) - rows
            return self._product(F.pad(x, (0, 0, 0, padding)))[:rows] if padding else self._product(x)
        return torch.cat([self(piece) for piece in torch.split(x, _MOST_ROWS)])

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return product


def padded_rows(rows: int) -> int:
    """The number of rows, at most 2,048, that a product of `rows` rows is made with."""
    if rows <= _EXACT_ROWS:
        return rows
    step = 32 if rows <= 256 else 64
    return -(-rows // step) * step


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
