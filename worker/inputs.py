"""A plan's entries as tensors: what the model and the attention need to know of one iteration. Knows no model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.records import Entry
from worker.transfer import Ints, to_device_together


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One job's rows in the batch and its place in the cache."""

    first: int  # row of its first token
    start: int  # tokens whose KV is in the cache already
    count: int  # tokens computed now
    blocks: Ints

    @property
    def end(self) -> int:
        """Tokens in the cache once this iteration has written its own."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Inputs:
    """One iteration. The tensors are on the device; `tokens` runs over the batch, job after job."""

    tokens: Tensor  # [tokens] ids
    positions: Tensor  # [tokens] of each token in its job
    slots: Tensor  # [tokens] block * block_tokens + offset
    sampled: Tensor  # [rows] the last row of every entry that wants a token
    segments: list[Segment]


def build_inputs(entries: list[Entry], block_tokens: int, device: torch.device) -> Inputs:
    """Lay the entries end to end. At least one entry; each has tokens, and blocks enough for them."""
    for entry in entries:
        _check(entry, block_tokens)
    starts, counts = _ints(entry.start for entry in entries), _ints(len(entry.tokens) for entry in entries)
    tables = _ints(len(entry.blocks) for entry in entries)  # sizes of block tables
    ends, table_ends = counts.cumsum(), tables.cumsum()
    blocks, tokens = _ints(b for e in entries for b in e.blocks), _ints(t for e in entries for t in e.tokens)
    positions = np.arange(len(tokens)) + (starts - ends + counts).repeat(counts)
    of_token = (table_ends - tables).repeat(counts) + positions // block_tokens  # where in `blocks` its own is
    slots = blocks[of_token] * block_tokens + positions % block_tokens
    sampled = ends[np.array([entry.sampling is not None for entry in entries])] - 1
    segments = [
        Segment(end - count, start, count, blocks[table_end - size : table_end])
        for end, count, start, table_end, size in zip(
            *(numbers.tolist() for numbers in (ends, counts, starts, table_ends, tables)), strict=True
        )
    ]
    tokens_there, positions_there, slots_there, sampled_there = to_device_together(
        [tokens, positions, slots, sampled], device
    )
    return Inputs(tokens_there, positions_there, slots_there, sampled_there, segments)


def _check(entry: Entry, block_tokens: int) -> None:
    needed = -(-(entry.start + len(entry.tokens)) // block_tokens)
    assert entry.tokens, f"job {entry.job_id} has no tokens"
    assert needed <= len(entry.blocks), f"job {entry.job_id} has {len(entry.blocks)} blocks, needs {needed}"


def _ints(numbers: Iterable[int]) -> Ints:
    return np.fromiter(numbers, np.int64)
