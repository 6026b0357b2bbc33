"""Attention by the native kernel, native/attention.c, called for all decoding jobs at once."""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.inputs import Segment
from worker.kv_cache import KvCache
from worker.native.library import open_library

logger = logging.getLogger(__name__)

_WIDTH = 8  # numbers of a vector in attention.c
# Numbers of keys up to which one thread is as fast as several, and keeps off cores that others use (measured).
_ONE_THREAD = 2**15

_Decode = Callable[..., None]


class _Job(ctypes.Structure):
    _fields_ = (
        ("row", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("num_jobs", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_tokens", ctypes.c_int64),
        ("block_stride", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("jobs", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled function, for one cache."""

    _decode: _Decode
    _cache: KvCache

    def prepare(self, jobs: list[Segment], window: int) -> "NativeDecode":
        """What all layers of an iteration share. Each job has one token, and sees the last `window` slots."""
        cache = self._cache
        longest_first = sorted(jobs, key=lambda s: min(s.end, window), reverse=True)  # threads finish together
        table = (_Job * len(jobs))(
            *(_Job(s.first, max(s.end - window, 0), s.end, s.blocks.ctypes.data) for s in longest_first)
        )
        numbers = sum(min(s.end, window) for s in jobs) * cache.kv_heads * cache.head_dim
        batch = _Batch(
            num_jobs=len(jobs),
            kv_heads=cache.kv_heads,
            head_dim=cache.head_dim,
            block_tokens=cache.block_tokens,
            block_stride=cache.device.stride(0),
            threads=torch.get_num_threads() if numbers > _ONE_THREAD else 1,
            jobs=ctypes.addressof(table),
        )
        return NativeDecode(self._decode, cache.device, batch, (table, jobs))


@dataclass(frozen=True, slots=True)
class NativeDecode:
    """The decoding jobs of one iteration."""

    _decode: _Decode
    _pool: Tensor
    _batch: _Batch
    _owners: object  # of the memory that the batch points to

    def attend(self, layer: int, q: Tensor, out: Tensor, scale: float) -> None:
        """Fill the jobs' rows of `out`. q, out: [tokens, kv_heads, group, head_dim], `out` contiguous."""
        group = q.shape[2]
        assert q.stride()[1:] == (group * q.stride(2), q.stride(2), 1), f"heads with strides {q.stride()}"
        pool = self._pool.data_ptr() + layer * self._pool.stride(1) * self._pool.itemsize
        self._decode(self._batch, pool, q.data_ptr(), q.stride(0), q.stride(2), group, scale, out.data_ptr())


def open_kernel(cache: KvCache) -> Kernel | None:
    """The kernel for `cache`, or None where torch has to do."""
    if cache.torch_device.type != "cpu":
        return None
    if cache.dtype != torch.float32 or cache.head_dim % _WIDTH:
        logger.info("decode attention is torch's: the native one has no %s heads of %d", cache.dtype, cache.head_dim)
        return None
    library = open_library()
    return None if library is None else Kernel(_decode_of(library), cache)


def _decode_of(library: ctypes.CDLL) -> _Decode:
    decode = library.decode
    decode.restype = None
    decode.argtypes = [
        ctypes.POINTER(_Batch),
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_float,
        ctypes.c_void_p,
    ]
    return decode
