"""Attention by Triton kernels, on GPUs: for decoding jobs, prompts and chunks of them, each in one launch for all jobs.

Why Triton, and not FlashInfer or FlashAttention: it comes with torch's CUDA builds, so there is no dependency to match
with torch, CUDA and the GPU. It reads our blocks as they lie, which hold all layers of a stage, so that a copy to the
host is one region. And what is summed in which order is written here, so that a job's numbers do not depend on who else
is in the batch; libraries choose their splits by the number of jobs and of processors.

A decoding job's context is split at fixed slots; splits are attended side by side and then merged in their order, so
that a single long job keeps a whole GPU busy. Prompts have queries enough for that. A decoded token need not have the
bits that it has in a prompt, where it is computed in tiles of another shape.
"""

import logging
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from worker.attention.triton_work import SPLIT_SLOTS, Work, lay_out
from worker.inputs import Inputs
from worker.kv_cache import KvCache

logger = logging.getLogger(__name__)

_LEAST = 16  # of each dimension of a product on tensor cores
# Rows of a tile of queries, of which a query takes as many as there are heads that share its keys.
_TILE_ROWS = 64
# Most bytes of a tile of keys, and half of those of a tile of queries. With as many values, and the next of both under
# way, that fits the 99 KiB that GPUs have since Ampere.
_KEY_BYTES = 2**14
_PROGRAMS_PER_PROCESSOR = 4
# A window that no context reaches: what `window=None` means.
_UNLIMITED = 2**30


class TritonKernel:
    """The kernels, for one cache."""

    def __init__(self, cache: KvCache, kernels: ModuleType) -> None:
        """kernels: the module triton_kernels, which loads only where there is Triton."""
        head_pad = max(_LEAST, _power_of_two(cache.head_dim))
        key_bytes = head_pad * cache.dtype.itemsize
        self.kernels = kernels
        self.pools = cache.device.unbind(1)  # of each layer: [blocks, 2, kv_heads, block_tokens, head_dim]
        self.kv_heads = cache.kv_heads
        self.block_tokens = cache.block_tokens
        self.head = {"HEAD_DIM": cache.head_dim, "HEAD_PAD": head_pad}
        self.block = {**self.head, "KV_HEADS": cache.kv_heads, "BLOCK_TOKENS": cache.block_tokens}
        self.key_slots = max(_LEAST, min(_TILE_ROWS, _KEY_BYTES // key_bytes))
        self.tile_rows = max(_LEAST, min(_TILE_ROWS, 2 * _KEY_BYTES // key_bytes))
        self.programs = _programs(cache.torch_device)

    def attention(self, inputs: Inputs) -> "TritonAttention":
        """The attention of one iteration."""

        def work(group: int) -> Work:
            return lay_out(inputs, self.block_tokens, _rows(self.tile_rows, group) // group)

        return TritonAttention(self, work)

    def attention_of(self, work: Work) -> "TritonAttention":
        """The attention of what `work` holds whenever it is computed."""
        return TritonAttention(self, lambda _: work)

    def try_out(self) -> None:
        """Launch kernels that have nothing to do. Triton needs a C compiler and Python's headers, and says so here."""
        room = Work.room(1, 1, self.block_tokens, self.pools[0].device)
        rows = self.pools[0].new_zeros(1, self.kv_heads, self.head["HEAD_DIM"])
        self.attention_of(room)(0, rows, rows, rows, scale=1.0, window=None)


def open_kernel(cache: KvCache) -> TritonKernel | None:
    """The kernels for `cache`, or None where torch has to do."""
    if cache.torch_device.type != "cuda":
        return None
    try:
        from worker.attention import triton_kernels  # noqa: PLC0415 - only torch's CUDA builds bring Triton

        kernel = TritonKernel(cache, triton_kernels)
        kernel.try_out()
    except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:
        logger.warning("attention is torch's, which is slower: %s", error)
        return None
    return kernel


@dataclass(frozen=True, slots=True)
class _Batch:
    """One iteration's work, and memory for what its splits give."""

    work: Work
    parts: Tensor  # fp32 [splits, heads, head_dim]
    weights: Tensor  # fp32 [splits, heads] log2 of the sum of exponentials


class TritonAttention:
    """The attention of one iteration, or of all that a CUDA graph is given."""

    def __init__(self, kernel: TritonKernel, work_of: Callable[[int], Work]) -> None:
        """work_of: the work, when that many query heads share a key head."""
        self._kernel = kernel
        self._work_of = work_of
        self._batch: _Batch | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        tokens, heads, head_dim = q.shape
        q, k, v = (
            rows if rows.stride(1) == head_dim and rows.stride(2) == 1 else rows.contiguous() for rows in (q, k, v)
        )
        batch, kernels, pool = self._batch or self._prepare(q), self._kernel.kernels, self._kernel.pools[layer]
        work, limits = batch.work, (window or _UNLIMITED, scale * math.log2(math.e))
        out = q.new_empty(tokens, heads * head_dim)
        kernels.store[(tokens,)](
            *(k, v, work.slots, work.counts, pool, k.stride(0), v.stride(0), pool.stride(0)),
            HEADS_PAD=_power_of_two(self._kernel.kv_heads),
            **self._kernel.block,
        )
        if len(work.splits):
            self._attend(q, pool, batch, limits, None)
            jobs = min(tokens, len(work.jobs))  # A graph for few jobs has room for more.
            kernels.merge[(jobs, heads)](
                *(batch.parts, batch.weights, work.jobs, work.counts, out), HEADS=heads, **self._kernel.head
            )
        if len(work.tiles):
            self._attend(q, pool, batch, limits, out)
        return out

    def _prepare(self, q: Tensor) -> _Batch:
        _, heads, head_dim = q.shape
        work = self._work_of(heads // self._kernel.kv_heads)
        parts = q.new_empty(len(work.splits), heads, head_dim, dtype=torch.float32)
        self._batch = _Batch(work, parts, parts.new_empty(parts.shape[:2]))
        return self._batch

    def _attend(self, q: Tensor, pool: Tensor, batch: _Batch, limits: tuple[int, float], out: Tensor | None) -> None:
        """Of tiles into `out`, or of splits into the batch's parts."""
        kernel, work, group = self._kernel, batch.work, q.shape[1] // self._kernel.kv_heads
        pieces, target, least_rows = (
            (work.splits, batch.parts, _LEAST) if out is None else (work.tiles, out, kernel.tile_rows)
        )
        kernel.kernels.attend[(min(len(pieces) * kernel.kv_heads, kernel.programs),)](
            *(q, pool, work.blocks, pieces, work.counts, target, batch.weights, q.stride(0), pool.stride(0), *limits),
            COUNT=2 if out is None else 3,
            GROUP=group,
            ROWS=_rows(least_rows, group),
            SLOTS=kernel.key_slots,
            SPLIT=SPLIT_SLOTS if out is None else 0,
            **kernel.block,
        )


def _rows(least: int, group: int) -> int:
    return max(least, _power_of_two(group))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _programs(device: torch.device) -> int:
    """As many as keep the device busy. Interpreted ones run one after the other, and two are enough to take turns."""
    if device.type != "cuda":
        return 2
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
