"""The Triton kernels of paged attention: code for the device alone. triton_paged.py lays out their work and calls them.

All of them read what is to be done from the device, so that a CUDA graph that holds them can be given other work. Sums
are made in an order that depends on nothing but the job whose they are: not on the grid, nor on who else is there.
"""

import triton
import triton.language as tl

# What stands for minus infinity where a difference of two of them must not be NaN.
_LOWEST = tl.constexpr(-1.0e30)
# Splits of a job that are merged at a time.
_MERGED = tl.constexpr(16)


@triton.jit
def store(
    k,  # [tokens, KV_HEADS, HEAD_DIM], rows k_stride apart
    v,
    slots,  # [tokens] block * BLOCK_TOKENS + offset
    counts,  # [4] tokens, jobs, splits, tiles
    pool,  # [blocks, 2, KV_HEADS, BLOCK_TOKENS, HEAD_DIM] of one layer, blocks block_stride apart
    k_stride,
    v_stride,
    block_stride,
    KV_HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Put one token's keys and values into its slot; what is not finite becomes 0, as in KvCache.write."""
    token = tl.program_id(0).to(tl.int64)
    if token < tl.load(counts):
        head = tl.arange(0, HEADS_PAD)[:, None]
        dim = tl.arange(0, HEAD_PAD)[None, :]
        real = (head < KV_HEADS) & (dim < HEAD_DIM)
        keys = tl.load(k + token * k_stride + head * HEAD_DIM + dim, mask=real, other=0.0)
        values = tl.load(v + token * v_stride + head * HEAD_DIM + dim, mask=real, other=0.0)
        slot = tl.load(slots + token)
        place = slot // BLOCK_TOKENS * block_stride + slot % BLOCK_TOKENS * HEAD_DIM
        target = pool + place + head * (BLOCK_TOKENS * HEAD_DIM) + dim
        tl.store(target, tl.where(tl.abs(keys) < float("inf"), keys, 0.0), mask=real)
        target += KV_HEADS * BLOCK_TOKENS * HEAD_DIM
        tl.store(target, tl.where(tl.abs(values) < float("inf"), values, 0.0), mask=real)


@triton.jit
def attend(
    q,  # [tokens, KV_HEADS * GROUP, HEAD_DIM], rows q_stride apart
    pool,  # as above
    blocks,  # the jobs' block tables, one after the other
    pieces,  # [pieces, 5] row and position of the first query, queries, where the job's table begins, first slot
    counts,  # [4], in which COUNT is the number of pieces
    out,  # [tokens, heads, HEAD_DIM]; of splits [pieces, heads, HEAD_DIM], fp32
    weights,  # of splits: [pieces, heads] log2 of the sum of exponentials
    q_stride,
    block_stride,
    window,
    scale,  # of the scores, times log2(e)
    COUNT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile of queries: each takes GROUP rows
    SLOTS: tl.constexpr,  # of a tile of keys
    SPLIT: tl.constexpr,  # slots of a split; 0: pieces are no splits, they see all before them
):
    """Attend from a few consecutive queries of a job, one KV head at a time.

    A query meets its slots in tiles whose bounds depend on the slots' numbers alone. Programs take pieces in turn, so
    the grid need not know how many there are.
    """
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_PAD)[None, :]
    for work in range(tl.program_id(0), tl.load(counts + COUNT) * KV_HEADS, tl.num_programs(0)):
        piece = work // KV_HEADS
        kv_head = work % KV_HEADS
        first_row = tl.load(pieces + piece * 5)
        first_position = tl.load(pieces + piece * 5 + 1)
        queries = tl.load(pieces + piece * 5 + 2)
        table = blocks + tl.load(pieces + piece * 5 + 3)
        begin = tl.load(pieces + piece * 5 + 4)

        query = row // GROUP
        head = kv_head * GROUP + row % GROUP
        position = (first_position + query)[:, None]
        real = (query < queries)[:, None] & (dim < HEAD_DIM)
        rows = tl.load(
            q + (first_row + query)[:, None] * q_stride + head[:, None] * HEAD_DIM + dim, mask=real, other=0.0
        )

        end = first_position + queries
        if SPLIT:
            end = tl.minimum(end, begin + SPLIT)
        start = tl.maximum(begin, first_position + 1 - window) // SLOTS * SLOTS
        best = tl.full([ROWS], _LOWEST, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, HEAD_PAD], tl.float32)
        for first in range(start, end, SLOTS):
            slot = first + tl.arange(0, SLOTS)
            block = tl.load(table + slot // BLOCK_TOKENS, mask=slot < end, other=0)
            place = block * block_stride + (kv_head * BLOCK_TOKENS + slot % BLOCK_TOKENS) * HEAD_DIM
            stored = (slot < end)[:, None] & (dim < HEAD_DIM)
            keys = tl.load(pool + place[:, None] + dim, mask=stored, other=0.0)
            scores = tl.dot(rows, tl.trans(keys), input_precision="ieee") * scale
            seen = (slot < end)[None, :] & (slot[None, :] <= position) & (slot[None, :] > position - window)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            shares = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(best - higher)
            value_place = place + KV_HEADS * BLOCK_TOKENS * HEAD_DIM
            values = tl.load(pool + value_place[:, None] + dim, mask=stored, other=0.0)
            sums = sums * shrink[:, None] + tl.dot(shares.to(values.dtype), values, input_precision="ieee")
            total = total * shrink + tl.sum(shares, 1)
            best = higher

        total = tl.where(total == 0.0, 1.0, total)  # Nothing was seen: a split before the window.
        if SPLIT:
            place = piece * (KV_HEADS * GROUP) + head
            tl.store(weights + place, best + tl.log2(total), mask=query < queries)
        else:
            place = (first_row + query) * (KV_HEADS * GROUP) + head
        result = sums / total[:, None]
        tl.store(out + place[:, None] * HEAD_DIM + dim, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def merge(
    parts,  # [splits, HEADS, HEAD_DIM], fp32
    weights,  # [splits, HEADS]
    jobs,  # [jobs, 3] row of the output, first split, splits
    counts,  # as above
    out,  # [tokens, HEADS, HEAD_DIM]
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
):
    """Join the splits of one head of one job, in their order."""
    job = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if job < tl.load(counts + 1):
        row = tl.load(jobs + job * 3)
        first = tl.load(jobs + job * 3 + 1)
        splits = tl.load(jobs + job * 3 + 2)
        dim = tl.arange(0, HEAD_PAD)
        best = tl.full((), _LOWEST, tl.float32)
        total = 0.0
        sums = tl.zeros([HEAD_PAD], tl.float32)
        for done in range(0, splits, _MERGED):
            split = done + tl.arange(0, _MERGED)
            place = (first + split) * HEADS + head
            weight = tl.load(weights + place, mask=split < splits, other=float("-inf"))
            part = tl.load(
                parts + place[:, None] * HEAD_DIM + dim[None, :],
                mask=(split < splits)[:, None] & (dim < HEAD_DIM)[None, :],
                other=0.0,
            )
            higher = tl.maximum(best, tl.max(weight, 0))
            share = tl.exp2(weight - higher)
            shrink = tl.exp2(best - higher)
            sums = sums * shrink + tl.sum(share[:, None] * part, 0)
            total = total * shrink + tl.sum(share, 0)
            best = higher
        place = (row * HEADS + head) * HEAD_DIM + dim
        tl.store(out + place, (sums / total).to(out.dtype.element_ty), mask=dim < HEAD_DIM)
