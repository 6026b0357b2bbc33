"""The codes of a packed GGUF tensor, and what makes numbers of them.

Packings are described by gguf/quants.py. Its `dequantize` gives the same numbers, but for the sign of zeros, and no
codes: so the fields of blocks are taken apart here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Packing
from gguf.quants import Q4_K
from numpy.typing import NDArray

from worker.models.stored_matrix import GROUP8, StoredMatrix

Blocks = NDArray[np.uint8]  # [blocks, bytes]
Floats = NDArray[np.float32]
Fields = tuple[NDArray[Any], Floats, Floats]  # codes, scales, offsets: [blocks, ...]


def coded(packed: NDArray[np.uint8], packing: Packing, out: int) -> StoredMatrix:
    """A matrix of `out` rows, packed in one of the ways of `CODED`."""
    _, block_bytes = GGML_QUANT_SIZES[packing]
    codes, scales, offsets = _FIELDS[packing](packed.reshape(-1, block_bytes))
    return StoredMatrix(_rows(codes, out), _rows(scales, out), _rows(offsets, out))


def _rows(field: NDArray[Any], out: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(field)).view(out, -1)


def _q4_0(blocks: Blocks) -> Fields:
    scales = _floats(blocks[:, :2])
    return _halves(blocks[:, 2:]), scales, -8 * scales


def _q4_1(blocks: Blocks) -> Fields:
    return _halves(blocks[:, 4:]), _floats(blocks[:, :2]), _floats(blocks[:, 2:4])


def _q4_k(blocks: Blocks) -> Fields:
    scales, offsets = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    codes = _halves(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), -1)
    return codes, _floats(blocks[:, :2]) * scales, -(_floats(blocks[:, 2:4]) * offsets)


def _q5_0(blocks: Blocks) -> Fields:
    scales = _of_groups(_floats(blocks[:, :2]))
    return _fifths(blocks[:, 2:]) - 16, scales, np.zeros_like(scales)


def _q5_1(blocks: Blocks) -> Fields:
    return _fifths(blocks[:, 4:]), _of_groups(_floats(blocks[:, :2])), _of_groups(_floats(blocks[:, 2:4]))


def _q5_k(blocks: Blocks) -> Fields:
    """As Q4_K, with the fifth bit of input i of group g in bit g of byte i."""
    low, scales, offsets = _q4_k(np.delete(blocks, np.s_[16:48], 1))
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = low.reshape(-1, 8, 32) | high << 4
    return codes.reshape(len(blocks), -1).view(np.int8), _of_groups(scales), _of_groups(offsets)


def _q6_k(blocks: Blocks) -> Fields:
    low = _halves(blocks[:, :128].reshape(-1, 64)).reshape(-1, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low | high.reshape(-1, 4, 32) << 4).astype(np.int8) - 32
    scales = blocks[:, 192:208].view(np.int8) * _floats(blocks[:, 208:])
    return codes.reshape(len(blocks), -1), scales, np.zeros_like(scales)


def _q8_0(blocks: Blocks) -> Fields:
    scales = _of_groups(_floats(blocks[:, :2]))
    return blocks[:, 2:].view(np.int8), scales, np.zeros_like(scales)


_FIELDS: dict[Packing, Callable[[Blocks], Fields]] = {
    Packing.Q4_0: _q4_0,
    Packing.Q4_1: _q4_1,
    Packing.Q4_K: _q4_k,
    Packing.Q5_0: _q5_0,
    Packing.Q5_1: _q5_1,
    Packing.Q5_K: _q5_k,
    Packing.Q6_K: _q6_k,
    Packing.Q8_0: _q8_0,
}
CODED = frozenset(_FIELDS)


def _floats(field: Blocks) -> Floats:
    """[blocks, 2 bytes each] as [blocks, 1]."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def _of_groups(floats: Floats) -> Floats:
    """[blocks, n] of 32 inputs each as those of codes of 8 bits: [blocks, n * 32 / GROUP8]."""
    return np.repeat(floats, 32 // GROUP8, 1)


def _halves(field: Blocks) -> NDArray[np.uint8]:
    """All lower halves of a block's bytes, then all upper ones."""
    return np.concatenate((field & 15, field >> 4), 1)


def _fifths(field: Blocks) -> NDArray[np.int8]:
    """[blocks, 4 bytes of fifth bits and 16 of halves] as codes."""
    high = np.unpackbits(field[:, :4], axis=1, bitorder="little")
    return (_halves(field[:, 4:]) | high << 4).view(np.int8)
