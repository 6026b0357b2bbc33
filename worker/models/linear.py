"""Matrix products, nearly all of the work. In torch: a plain one, and one whose weights oneDNN has laid out.

Where there are native kernels they compute instead (native_linear.py); these serve where they cannot, and are their
reference. load_linear.py chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.rms_norm import RmsNorm


class Linear(Protocol):
    """A product with a matrix, together with what comes right before and after it."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x: [rows, in]; add: [rows, out], added to the product. Returns [rows, out]."""
        ...


# oneDNN keeps code for every number of rows that it has seen, for each matrix, up to a megabyte each: gigabytes after
# a day of prompts of all lengths. So it is shown few numbers: those of decoding as they are, and steps beyond.
_EXACT_ROWS = 16
_MOST_ROWS = 2048


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """The reference, on any device."""

    weight: Tensor  # [out, in]
    bias: Tensor | None = None  # [out]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        product = F.linear(x, self.weight, self.bias)
        return product if add is None else add + product


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

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        product = self._product_of_any_rows(x)
        return product if add is None else add + product

    def _product_of_any_rows(self, x: Tensor) -> Tensor:
        rows = len(x)
        if rows <= _EXACT_ROWS:
            return self._product(x)
        if rows <= _MOST_ROWS:
            padding = padded_rows(rows) - rows
            return self._product(F.pad(x, (0, 0, 0, padding)))[:rows] if padding else self._product(x)
        return torch.cat([self._product_of_any_rows(piece) for piece in torch.split(x, _MOST_ROWS)])

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return product


def padded_rows(rows: int) -> int:
    """The number of rows, at most 2,048, that a product of `rows` rows is made with."""
    if rows <= _EXACT_ROWS:
        return rows
    step = 32 if rows <= 256 else 64
    return -(-rows // step) * step


@dataclass(frozen=True, slots=True)
class NormedLinear:
    """A product of normed rows."""

    norm: RmsNorm
    product: Linear

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return self.product(self.norm(x), add)


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """What an activation of the first half of a product lets through of the second."""

    product: Linear  # in to 2 * out
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        gate, up = self.product(x).chunk(2, -1)
        gated = self.activation(gate) * up
        return gated if add is None else add + gated
