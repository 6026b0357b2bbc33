"""A plan's entries as tensors: what the model and the attention need to know of one iteration. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.records import Entry, unpack_blocks
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
    """Lay the entries end to end. At least one entry; each has tokens, and blocks enough for them.

    In plain lists: after an iteration nothing of numpy is in the caches, and every function of it costs a few
    microseconds in which the stage computes nothing.
    """
    tokens, positions, slots, sampled = list[int](), list[int](), list[int](), list[int]()
    segments = []
    for entry in entries:
        first, count, blocks = len(tokens), len(entry.tokens), unpack_blocks(entry.blocks)
        _check(entry, blocks, block_tokens)
        there = range(entry.start, entry.start + count)
        tokens += entry.tokens
        positions += there
        slots += [blocks[p // block_tokens] * block_tokens + p % block_tokens for p in there]
        if entry.sampling is not None:
            sampled.append(first + count - 1)
        segments.append(Segment(first, entry.start, count, np.array(blocks, np.int64)))
    numbers = [np.array(part, np.int64) for part in (tokens, positions, slots, sampled)]
    tokens_there, positions_there, slots_there, sampled_there = to_device_together(numbers, device)
    return Inputs(tokens_there, positions_there, slots_there, sampled_there, segments)


def _check(entry: Entry, blocks: Sequence[int], block_tokens: int) -> None:
    needed = -(-(entry.start + len(entry.tokens)) // block_tokens)
    assert entry.tokens, f"job {entry.job_id} has no tokens"
    assert needed <= len(blocks), f"job {entry.job_id} has {len(blocks)} blocks, needs {needed}"
