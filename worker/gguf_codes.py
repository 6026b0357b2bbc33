"""The codes of a packed GGUF tensor, and what makes numbers of them. Packings are described by gguf/quants.py, whose
`dequantize` gives the same numbers, to the bit, and nothing else: so the fields of blocks are taken apart here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Packing
from gguf.quants import Q4_K
from numpy.typing import NDArray

from worker.models.stored_matrix import GROUP8, StoredMatrix

Blocks = NDArray[np.uint8]  # [blocks, bytes]
Fields = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]  # codes, scales, offsets: [blocks, ...]


def coded(packed: Blocks, packing: Packing, out: int) -> StoredMatrix | None:
    """A matrix of `out` rows; None where nothing is gained by codes, or where they are of a kind that is not known.

    packed: [blocks, bytes], row after row.
    """
    if packing not in _FIELDS:
        return None
    codes, scales, offsets = (None if field is None else _rows(field, out) for field in _FIELDS[packing](packed))
    assert codes is not None
    return StoredMatrix(codes, scales, offsets)


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


def _q6_k(blocks: Blocks) -> Fields:
    low = _halves(blocks[:, :128].reshape(-1, 64)).reshape(-1, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low | high.reshape(-1, 4, 32) << 4).astype(np.int8) - 32
    scales = blocks[:, 192:208].view(np.int8) * _floats(blocks[:, 208:])
    return codes.reshape(len(blocks), -1), scales, None


def _q8_0(blocks: Blocks) -> Fields:
    return blocks[:, 2:].view(np.int8), np.repeat(_floats(blocks[:, :2]), 32 // GROUP8, 1), None


_FIELDS: dict[Packing, Callable[[Blocks], Fields]] = {
    Packing.Q4_0: _q4_0,
    Packing.Q4_1: _q4_1,
    Packing.Q4_K: _q4_k,
    Packing.Q6_K: _q6_k,
    Packing.Q8_0: _q8_0,
}


def _floats(field: Blocks) -> NDArray[np.float32]:
    """[blocks, 2 bytes each] as [blocks, 1]."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def _halves(field: Blocks) -> NDArray[np.uint8]:
    """All lower halves of a block's bytes, then all upper ones."""
    return np.concatenate((field & 15, field >> 4), 1)
