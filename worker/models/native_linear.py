"""Products by the native kernel, native/linear.c: its layout of a matrix, and calling it.

A row's product has the same bits in any batch. bf16, fp16 and the codes of a file are only how the matrix is stored:
the product is that with the fp32 matrix of the same numbers, to the bit, so an exact one whose numbers fit in any of
these is stored in it. AMX, where a CPU has it, serves those that were rounded to bf16, and rounds the rows that they
meet, too. int8 meets rows that are rounded to 16 bits in each group of inputs.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.rms_norm import RmsNorm
from worker.models.stored_matrix import GROUP, GROUP4, GROUP8, StoredMatrix


class Layout(IntEnum):
    """How a matrix lies in memory; the kernel's `enum Type`."""

    FP32 = 0
    BF16 = 1
    FP16 = 2
    INT8 = 3
    INT8_QUADS = 4  # for CPUs that multiply four times 8 bits at once
    BF16_PAIRS = 5  # for AMX
    CODES4 = 6
    CODES8 = 7


_NUMBER_BYTES = {
    Layout.FP32: 4,
    Layout.INT8: 1,
    Layout.INT8_QUADS: 1,
    Layout.CODES4: 1 / 2 + 8 / GROUP4,
    Layout.CODES8: 1 + 8 / GROUP8,
}


class Parameters(ctypes.Structure):
    """The kernel's record of a product."""

    _fields_ = (
        ("ins", ctypes.c_int64),
        ("outs", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("gated", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("matrix", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """[norm,] product [, bias] [, gate] [, add] in one call."""

    _multiply: Callable[..., None]
    _columns: Callable[..., None]
    parameters: Parameters
    _address: int
    _owners: tuple[Tensor | None, ...]  # of the memory that the parameters point to

    @property
    def numbers(self) -> int:
        """In the matrix."""
        return int(self.parameters.ins * self.parameters.outs * (1 + self.parameters.gated))

    @property
    def number_bytes(self) -> float:
        """Of a number in the matrix as it is stored, with its part of a code's scale and offset."""
        return _NUMBER_BYTES.get(Layout(self.parameters.type), 2)

    @classmethod
    def pack(
        cls,
        library: ctypes.CDLL,
        matrix: StoredMatrix,
        bias: Tensor | None = None,
        *,
        norm: RmsNorm | None = None,
        gated: bool = False,
    ) -> "NativeLinear":
        """matrix: [out, in]; gated: [2 * out, in], the gates first, whose activation is SiLU. bias: fp32 [rows]."""
        assert library.linear_group() == GROUP
        matrix = _narrowed(matrix, library)
        layout, width = layout_of(matrix, library), library.linear_width()

        def panels(rows: Tensor) -> Tensor:
            return _panels(rows, width, gated)

        values = _panels(matrix.values, width, gated, mixed=layout == Layout.BF16)
        if layout == Layout.CODES4:
            values = values[..., :width] | values[..., width:] << 4
        elif layout == Layout.INT8_QUADS:
            values = _side_by_side(values, 4, library.linear_slice()) ^ -128  # as unsigned numbers, 128 more
        elif layout in (Layout.INT8, Layout.BF16_PAIRS):
            values = _side_by_side(values, 2, library.linear_slice())
        scales = None if matrix.scales is None else panels(matrix.scales)
        if scales is not None and matrix.offsets is not None:
            group = library.linear_group_of_4_bits() if layout == Layout.CODES4 else library.linear_group_of_8_bits()
            assert matrix.offsets.shape[1] * group == matrix.values.shape[1]
            scales = torch.stack((scales, panels(matrix.offsets)), 2)
        biases = None if bias is None else panels(bias[:, None])
        parameters = Parameters(
            ins=matrix.values.shape[1],
            outs=len(matrix.values) // (2 if gated else 1),
            type=layout,
            gated=gated,
            threads=torch.get_num_threads(),
            matrix=values.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            bias=None if biases is None else biases.data_ptr(),
            norm=None if norm is None else norm.weight.data_ptr(),
            epsilon=0.0 if norm is None else norm.eps,
        )
        owners = (values, scales, biases, None if norm is None else norm.weight)
        return cls(*_functions(library), parameters, ctypes.addressof(parameters), owners)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        rows, out = x.contiguous(), x.new_empty(len(x), self.parameters.outs)
        self._multiply(self._address, rows.data_ptr(), len(x), None if add is None else add.data_ptr(), out.data_ptr())
        return out

    def columns(self, ids: Tensor) -> Tensor:
        """The matrix's rows `ids`, [count], unpacked: an embedding that is the head's matrix needs no other copy."""
        out = torch.empty(len(ids), self.parameters.ins)
        self._columns(self._address, ids.data_ptr(), len(ids), out.data_ptr())
        return out


def _narrowed(matrix: StoredMatrix, library: ctypes.CDLL) -> StoredMatrix:
    library.linear_fp16.restype = ctypes.c_bool
    return matrix.narrowed([torch.bfloat16, torch.half] if library.linear_fp16() else [torch.bfloat16])


def layout_of(matrix: StoredMatrix, library: ctypes.CDLL) -> Layout:
    """What this CPU multiplies fastest."""
    dtype = matrix.values.dtype
    for question in (library.linear_amx, library.linear_quads):
        question.restype = ctypes.c_bool
    if matrix.is_coded:
        return Layout.CODES4 if dtype == torch.uint8 else Layout.CODES8
    if dtype == torch.int8:
        return Layout.INT8_QUADS if library.linear_quads() else Layout.INT8
    if dtype == torch.half:
        return Layout.FP16
    if dtype == torch.bfloat16:
        return Layout.BF16_PAIRS if library.linear_amx() and not matrix.exact else Layout.BF16
    return Layout.FP32


def _functions(library: ctypes.CDLL) -> tuple[Callable[..., None], Callable[..., None]]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.linear.argtypes, library.linear.restype = (pointer, pointer, number, pointer, pointer), None
    library.linear_columns.argtypes, library.linear_columns.restype = (pointer, pointer, number, pointer), None
    return library.linear, library.linear_columns


def _panels(rows: Tensor, width: int, gated: bool, *, mixed: bool = False) -> Tensor:
    """[out, n] as [panels, n, 2 * width], padded with zeros; gated: [2 * out, n], in every panel `width` gates first.

    mixed: the two halves of a panel's columns in turn.
    """
    ins = rows.shape[1]
    if gated:
        halves = rows.view(2, -1, ins)
        vectors = _padded(halves, -halves.shape[1] % width).view(2, -1, width, ins).transpose(0, 1)
    else:
        vectors = _padded(rows, -len(rows) % (2 * width)).view(-1, 2, width, ins)
    return vectors.permute(0, 3, *((2, 1) if mixed else (1, 2))).flatten(2).contiguous()


def _side_by_side(panels: Tensor, count: int, slice_inputs: int) -> Tensor:
    """[panels, n, width] as [panels, n / count, width, count], padded with zeros to whole slices."""
    padded = _padded(panels, -panels.shape[1] % slice_inputs)
    return padded.view(len(panels), -1, count, panels.shape[2]).transpose(2, 3).contiguous()


def _padded(x: Tensor, rows: int) -> Tensor:
    """With so many rows of zeros in the last but one dimension. No copy where there are none: matrices are large."""
    return F.pad(x, (0, 0, 0, rows)) if rows else x
