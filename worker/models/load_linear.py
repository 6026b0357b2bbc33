"""From a checkpoint's matrices to products: the fastest that there is for their device and type."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model_spec import Activation
from worker.models.linear import GatedLinear, Linear, NormedLinear, PackedLinear, PlainLinear
from worker.models.native_linear import NativeLinear
from worker.models.rms_norm import RmsNorm
from worker.models.stored_matrix import StoredMatrix
from worker.native.library import open_library
from worker.weights import Weights

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def load_linear(weights: Weights, name: str, out: int, ins: int, *, bias: bool, norm: RmsNorm | None = None) -> Linear:
    """The product of rows, normed first if there is a norm, with `{name}.weight`, plus `{name}.bias` if `bias`."""
    return load_stacked(weights, [name], [out], ins, bias=bias, norm=norm)


def load_stacked(
    weights: Weights, names: Sequence[str], outs: Sequence[int], ins: int, *, bias: bool, norm: RmsNorm | None = None
) -> Linear:
    """One product for several matrices that read the same input, stacked: it is faster than one for each."""
    return make_linear(*_stacked(weights, names, outs, ins, bias), norm)


def load_gated(
    weights: Weights, names: tuple[str, str], out: int, ins: int, activation: Activation, *, bias: bool, norm: RmsNorm
) -> Linear:
    """The product with the second matrix, gated by an activation of that with the first."""
    matrix, biases = _stacked(weights, names, (out, out), ins, bias)
    library = open_library() if _fits_native(matrix) and activation == "silu" else None
    if library is not None:
        return NativeLinear.pack(library, matrix, biases, norm=norm, gated=True)
    return GatedLinear(make_linear(matrix, biases, norm), ACTIVATIONS[activation])


def make_linear(matrix: StoredMatrix, bias: Tensor | None = None, norm: RmsNorm | None = None) -> Linear:
    """The product with `matrix`."""
    library = open_library() if _fits_native(matrix) else None
    if library is not None:
        return NativeLinear.pack(library, matrix, bias, norm=norm)
    unpacked = matrix.unpacked()
    packs = PackedLinear.supports(unpacked)
    product: Linear = PackedLinear.pack(unpacked, bias) if packs else PlainLinear(unpacked, bias)
    return product if norm is None else NormedLinear(norm, product)


def _fits_native(matrix: StoredMatrix) -> bool:
    return matrix.values.device.type == "cpu" and matrix.dtype == torch.float32


def _stacked(
    weights: Weights, names: Sequence[str], outs: Sequence[int], ins: int, bias: bool
) -> tuple[StoredMatrix, Tensor | None]:
    matrices = [weights.matrix(f"{name}.weight", out, ins) for name, out in zip(names, outs, strict=True)]
    biases = [weights.get(f"{name}.bias", out) for name, out in zip(names, outs, strict=True)] if bias else []
    return StoredMatrix.stacked(matrices), torch.cat(biases) if bias else None
