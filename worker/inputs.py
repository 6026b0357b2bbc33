"""A plan's entries as tensors: what the model and the attention need to know of one iteration. Knows no model."""

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
    segments = _segments(entries, block_tokens)
    positions = [np.arange(s.start, s.end) for s in segments]
    slots = [
        s.blocks[p // block_tokens] * block_tokens + p % block_tokens for s, p in zip(segments, positions, strict=True)
    ]
    tokens = [token for entry in entries for token in entry.tokens]
    sampled = [s.first + s.count - 1 for s, e in zip(segments, entries, strict=True) if e.sampling is not None]
    numbers = [np.array(tokens), np.concatenate(positions), np.concatenate(slots), np.array(sampled, dtype=np.int64)]
    tokens_there, positions_there, slots_there, sampled_there = to_device_together(numbers, device)
    return Inputs(tokens_there, positions_there, slots_there, sampled_there, segments)


def _segments(entries: list[Entry], block_tokens: int) -> list[Segment]:
    segments = []
    first = 0
    for entry in entries:
        count = len(entry.tokens)
        needed = -(-(entry.start + count) // block_tokens)
        assert count > 0, f"job {entry.job_id} has no tokens"
        assert needed <= len(entry.blocks), f"job {entry.job_id} has {len(entry.blocks)} blocks, needs {needed}"
        segments.append(Segment(first, entry.start, count, np.array(entry.blocks, dtype=np.int64)))
        first += count
    return segments
