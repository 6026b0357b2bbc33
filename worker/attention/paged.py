"""Attention over the paged cache, for any mixture of prompts, chunks of prompts and decoding jobs.

In torch, on any device: where there is a native kernel (native.py) this is its reference. Decoding jobs are gathered
from their blocks, a few jobs of similar length at a time, and attended with one batched product. Prompts go through
torch's fused attention, one job at a time. Query heads that share a KV head are rows of one matrix, so keys and values
are never repeated. The cache may round them: every query meets them as they are stored, in a whole prompt as well, or a
token's numbers would tell how its prompt was computed. Scores and sums are in the type of the queries.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.inputs import Inputs, Segment
from worker.kv_cache import Gather, KvCache
from worker.transfer import Ints, to_device

# Slots of padding that cost as much as one more call (measured: 0.2 µs per slot, 60 µs per call).
_PADDING_SLOTS = 256
# Queries of a chunk that are attended at once: bounds the mask, and what the causal mask wastes.
_CHUNK_QUERIES = 512
# A window that no context reaches: what `window=None` means.
_UNLIMITED = 2**40


class Scratch:
    """Memory for gathered blocks that outlives the iteration: fresh memory would be paged in again in every layer."""

    def __init__(self, cache: KvCache) -> None:
        self._memory = cache.device.new_empty(0)

    def take(self, size: int) -> Tensor:
        """`size` numbers, flat, whose content lasts until the next one who took memory writes."""
        if len(self._memory) < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Decoding jobs that are gathered and attended together."""

    rows: slice | Tensor  # their rows in the batch
    context: Gather
    mask: Tensor  # [jobs, kv_heads, 1, slots] 0 or -inf

    def attend(self, layer: int, q: Tensor, out: Tensor, scale: float) -> None:
        self.context.read(layer)
        out[self.rows] = _decode(q[self.rows], self.context.keys, self.context.values, self.mask, scale)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive queries of one job that look back into the cache."""

    rows: slice
    context: Gather
    mask: Tensor  # [queries, slots] True where a query sees a slot


@dataclass(frozen=True, slots=True)
class _Layout:
    """The batch as one window size sees it."""

    decoding: list[_Bucket]
    whole: list[slice]  # prompts from their first token on, which need nothing from the cache
    chunks: list[_Chunk]


class PagedAttention:
    """The attention of one iteration; what depends on the batch alone is computed once for all layers."""

    def __init__(self, cache: KvCache, scratch: Scratch, inputs: Inputs) -> None:
        assert cache.dtype.is_floating_point, "only the native kernel reads int8"
        self._cache = cache
        self._scratch = scratch
        self._segments = inputs.segments
        self._device = inputs.slots.device
        self._write_index = cache.write_index(inputs.slots)
        self._layouts: dict[int | None, _Layout] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        k, v = self._cache.write(layer, self._write_index, k, v)
        layout = self._layouts.get(window) or self._layouts.setdefault(
            window, self._lay_out(window or _UNLIMITED, q.dtype)
        )
        tokens, heads, head_dim = q.shape
        grouped = q.view(tokens, k.shape[1], -1, head_dim)  # [tokens, kv_heads, group, head_dim]
        out = q.new_empty(grouped.shape)
        for jobs in layout.decoding:
            jobs.attend(layer, grouped, out, scale)
        for rows in layout.whole:
            out[rows] = _prompt(grouped[rows], k[rows].transpose(0, 1), v[rows].transpose(0, 1), None, scale)
        for chunk in layout.chunks:
            chunk.context.read(layer)
            keys, values = chunk.context.keys[0], chunk.context.values[0]
            out[chunk.rows] = _prompt(grouped[chunk.rows], keys, values, chunk.mask, scale)
        return out.view(tokens, heads * head_dim)

    def _lay_out(self, window: int, dtype: torch.dtype) -> _Layout:
        decoding: list[Segment] = []
        whole: list[slice] = []
        chunks: list[_Chunk] = []
        for segment in self._segments:
            if segment.count == 1:
                decoding.append(segment)
            elif segment.start == 0 and segment.count <= window:
                whole.append(slice(segment.first, segment.first + segment.count))
            else:
                chunks.extend(self._chunks(segment, window))
        return _Layout([self._bucket(similar, window, dtype) for similar in _similar(decoding, window)], whole, chunks)

    def _bucket(self, jobs: list[Segment], window: int, dtype: torch.dtype) -> _Bucket:
        block_tokens = self._cache.block_tokens
        ends = np.array([s.end for s in jobs])[:, None]
        starts = np.maximum(ends - window, 0)
        first_blocks = starts // block_tokens
        num_blocks = int((-(-ends // block_tokens) - first_blocks).max())
        tables = np.zeros((len(jobs), num_blocks), dtype=np.int64)  # Block 0 pads: it is masked.
        for table, segment, first in zip(tables, jobs, first_blocks[:, 0], strict=True):
            blocks = segment.blocks[first : first + num_blocks]
            table[: len(blocks)] = blocks
        slots = first_blocks * block_tokens + np.arange(num_blocks * block_tokens)  # [jobs, slots]
        visible = torch.from_numpy((slots >= starts) & (slots < ends)).to(self._device)
        mask = torch.zeros(visible.shape, dtype=dtype, device=self._device).masked_fill_(~visible, -math.inf)
        return _Bucket(
            rows=self._rows([s.first for s in jobs]),
            context=self._gather(tables),
            mask=mask[:, None, None].expand(-1, self._cache.kv_heads, -1, -1).contiguous(),
        )

    def _chunks(self, segment: Segment, window: int) -> Iterable[_Chunk]:
        block_tokens = self._cache.block_tokens
        for begin in range(segment.start, segment.end, _CHUNK_QUERIES):
            end = min(begin + _CHUNK_QUERIES, segment.end)
            first_block = max(begin + 1 - window, 0) // block_tokens
            blocks = segment.blocks[first_block : -(-end // block_tokens)]
            slots = np.arange(len(blocks) * block_tokens) + first_block * block_tokens
            queries = np.arange(begin, end)[:, None]
            visible = (slots <= queries) & (slots > queries - window)
            first_row = segment.first + begin - segment.start
            yield _Chunk(
                rows=slice(first_row, first_row + end - begin),
                context=self._gather(blocks[None]),
                mask=torch.from_numpy(visible).to(self._device),
            )

    def _gather(self, tables: Ints) -> Gather:
        blocks = to_device(tables, self._device)
        return self._cache.gather(blocks, self._scratch.take(self._cache.gather_size(blocks)))

    def _rows(self, rows: list[int]) -> slice | Tensor:
        """A slice where the rows follow one another: it costs no copy."""
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return to_device(np.array(rows), self._device)


def _similar(jobs: list[Segment], window: int) -> list[list[Segment]]:
    """Split decoding jobs by length so that padding to the longest of a bucket costs less than one more bucket."""
    buckets: list[list[Segment]] = []
    padding = longest = 0
    for job in sorted(jobs, key=lambda s: s.end, reverse=True):
        length = min(job.end, window)
        padding += longest - length
        if not buckets or padding > _PADDING_SLOTS:
            buckets.append([])
            padding, longest = 0, length
        buckets[-1].append(job)
    return [sorted(bucket, key=lambda s: s.first) for bucket in buckets]


def _decode(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attend from one token per job. q: [jobs, kv_heads, group, head_dim]; returns the same shape."""
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    if q.dtype != torch.float32:  # Fused, because scores must not be rounded to 16 bits.
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    transposed = keys.flatten(0, 1).transpose(1, 2)  # [jobs * kv_heads, head_dim, slots]
    scores = torch.baddbmm(mask.flatten(0, 1), q.flatten(0, 1), transposed, alpha=scale)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(q.shape)


def _prompt(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend from consecutive tokens of one job; mask None: they are its first, and causal.

    q: [queries, kv_heads, group, head_dim]; keys, values: [kv_heads, slots, head_dim]. Returns the shape of q.
    """
    group = q.shape[2]
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q.permute(1, 2, 0, 3),  # [kv_heads, group, queries, head_dim]
        keys[:, None].expand(-1, group, -1, -1),
        values[:, None].expand(-1, group, -1, -1),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3)
