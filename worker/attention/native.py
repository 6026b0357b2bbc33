"""Attention by the native kernel, native/attention.c, for decoding jobs, prompts and chunks of them at once."""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.inputs import Inputs, Segment
from worker.kv_cache import KvCache
from worker.native.library import open_library
from worker.transfer import Ints

logger = logging.getLogger(__name__)

_WIDTH = 8  # numbers of a vector in attention.c
# Of a pool, in attention.h. bf16 and int8 are for tiles of AMX, and lie as these want them.
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
_TILED = (torch.bfloat16, torch.int8)
# Queries that meet a span of slots in turn: as many as stay in a core's first cache beside it.
_QUERIES = {torch.float32: 24, torch.float16: 24, torch.bfloat16: 48, torch.int8: 48}
# Numbers of keys up to which one thread is as fast as several, and keeps off cores that others use (measured).
_ONE_THREAD = 2**15
# A window that no context reaches: what `window=None` means.
_UNLIMITED = 2**40

_Attend = Callable[..., None]


class _Batch(ctypes.Structure):
    _fields_ = (
        ("num_runs", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_tokens", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("block_stride", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("runs", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled function, for one cache."""

    _attend: _Attend
    _cache: KvCache

    def attention(self, inputs: Inputs) -> "NativeAttention":
        """The attention of one iteration."""
        return NativeAttention(self._attend, self._cache, inputs.segments)


class NativeAttention:
    """The attention of one iteration; what depends on the batch alone is computed once for all layers."""

    def __init__(self, attend: _Attend, cache: KvCache, segments: list[Segment]) -> None:
        self._attend = attend
        self._cache = cache
        self.pool = cache.device.data_ptr()  # of the first layer, in block 0
        self.layer_stride = cache.device.stride(1) * cache.dtype.itemsize  # bytes from a layer to the next
        self._segments = segments
        self._batches: dict[int | None, tuple[_Batch, int, Ints]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        tokens, heads, head_dim = q.shape
        address = self.batch(window, heads)
        q, k, v = (
            rows if rows.stride(1) == head_dim and rows.stride(2) == 1 else rows.contiguous() for rows in (q, k, v)
        )
        out = q.new_empty(tokens, heads * head_dim)
        self._attend(
            address,
            self.pool + layer * self.layer_stride,
            q.data_ptr(),
            q.stride(0),
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            scale,
            out.data_ptr(),
        )
        return out

    def batch(self, window: int | None, heads: int) -> int:
        """Address of the kernel's record of the batch, as one window size sees it; it lives as long as this object."""
        return (self._batches.get(window) or self._prepare(window, heads // self._cache.kv_heads))[1]

    def _prepare(self, window: int | None, group: int) -> tuple[_Batch, int, Ints]:
        """The batch as one window size sees it: the kernel's record, its address, and what it points to."""
        cache, width = self._cache, window or _UNLIMITED
        numbers = sum(min(s.end, width) * s.count for s in self._segments) * cache.kv_heads * cache.head_dim
        threads = torch.get_num_threads() if numbers > _ONE_THREAD else 1
        runs = _runs(self._segments, width, max(1, _QUERIES[cache.dtype] // group), threads)
        batch = _Batch(
            num_runs=len(runs),
            kv_heads=cache.kv_heads,
            group=group,
            head_dim=cache.head_dim,
            block_tokens=cache.block_tokens,
            block_stride=cache.device.stride(0) * cache.dtype.itemsize,
            type=_TYPES[cache.dtype],
            window=width,
            threads=threads,
            runs=runs.ctypes.data,
        )
        return self._batches.setdefault(window, (batch, ctypes.addressof(batch), runs))


def attends_natively(head_dim: int) -> bool:
    """Whether there is a kernel for heads of that size, on a CPU and for queries in fp32."""
    return head_dim % _WIDTH == 0 and open_library() is not None


def attends_in_tiles(head_dim: int, block_tokens: int) -> bool:
    """Whether this CPU has AMX, and tiles of it fit: then attention is fastest with a pool of bf16 or int8."""
    library = open_library()
    if library is None:
        return False
    library.attends_tiles.argtypes, library.attends_tiles.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_bool
    return bool(library.attends_tiles(head_dim, block_tokens))


def open_kernel(cache: KvCache, dtype: torch.dtype = torch.float32) -> Kernel | None:
    """The kernel for `cache` and queries of `dtype`, or None where torch has to do."""
    if cache.torch_device.type != "cpu":
        return None
    known = dtype == torch.float32 and cache.dtype in _TYPES
    known &= cache.dtype not in _TILED or attends_in_tiles(cache.head_dim, cache.block_tokens)
    library = open_library()
    if not known or not attends_natively(cache.head_dim) or library is None:
        logger.info("attention is torch's: there is no kernel for %s heads of %d", dtype, cache.head_dim)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    strided = (pointer, number)
    library.attend.argtypes, library.attend.restype = (
        (pointer, pointer, *strided, *strided, *strided, ctypes.c_float, pointer),
        None,
    )
    return Kernel(library.attend, cache)


def _runs(segments: list[Segment], window: int, most: int, threads: int) -> Ints:
    """Up to `most` tokens of a job each, about as much work for every thread, the least of it last: others help there.

    [runs, 4]: row of the first token, its position in the job, tokens, address of the job's blocks.
    """
    runs = [
        (s.first + done, s.start + done, min(most, s.count - done), s.blocks.ctypes.data)
        for s in segments
        for done in range(0, s.count, most)
    ]
    runs.sort(key=lambda run: min(run[1] + run[2], window) * run[2], reverse=True)
    return np.array([run for thread in range(threads) for run in runs[thread::threads]], dtype=np.int64)
