"""A batch as the Triton kernels see it: which queries of which jobs meet which slots, as numbers on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.inputs import Inputs, Segment
from worker.transfer import Ints, to_device_together

# Slots of a split: enough that merging costs little, few enough that a single job gives all processors something to do.
SPLIT_SLOTS = 256


@dataclass(frozen=True, slots=True)
class Work:
    """Int64 tensors on the device. A *piece* is some consecutive queries of a job.

    It has five numbers: row and position of the first query, how many queries, where the job's table begins in
    `blocks`, the first slot that is looked at.
    """

    counts: Tensor  # [4] tokens, decoding jobs, splits, tiles: what is valid of the following
    slots: Tensor  # [tokens] where their keys and values go
    jobs: Tensor  # [decoding jobs, 3] row, first split, splits
    splits: Tensor  # [splits, 5] pieces of one query, which see at most SPLIT_SLOTS slots
    tiles: Tensor  # [tiles, 5] pieces of prompts and chunks
    blocks: Tensor  # [blocks] the jobs' tables, one after the other

    @classmethod
    def room(cls, jobs: int, splits: int, block_tokens: int, device: torch.device) -> "Work":
        """Zeros, with room for decoding jobs, and as many splits of all of them together."""
        blocks = splits * -(-SPLIT_SLOTS // block_tokens)
        shapes: list[tuple[int, ...]] = [(4,), (jobs,), (jobs, 3), (splits, 5), (0, 5), (blocks,)]
        return cls(*(torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes))

    def take(self, other: "Work") -> None:
        """Become `other`, which is no larger, in the same memory: a CUDA graph knows no other."""
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            own[: len(new)].copy_(new)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.counts, self.slots, self.jobs, self.splits, self.tiles, self.blocks


def num_splits(segment: Segment) -> int:
    """Of the context of a decoding job."""
    return segment.start // SPLIT_SLOTS + 1


def lay_out(inputs: Inputs, block_tokens: int, tile_queries: int) -> Work:
    """The work of one iteration. tile_queries: most queries of a tile."""
    decoding = [s for s in inputs.segments if s.count == 1]
    prompts = [s for s in inputs.segments if s.count > 1]
    tables = [s.blocks[: -(-s.end // block_tokens)] for s in (*decoding, *prompts)]
    tables_begin = np.cumsum([0, *map(len, tables)])
    jobs, splits = _splits(decoding, tables_begin)
    tiles = _tiles(prompts, tables_begin[len(decoding) : -1], tile_queries)
    counts = np.array([len(inputs.slots), len(jobs), len(splits), len(tiles)])
    numbers = [counts, jobs, splits, tiles, np.concatenate(tables)]
    there = to_device_together(numbers, inputs.slots.device)
    return Work(there[0], inputs.slots, *there[1:])


def _splits(jobs: list[Segment], tables_begin: Ints) -> tuple[Ints, Ints]:
    """`Work.jobs` and `Work.splits`."""
    rows = np.array([s.first for s in jobs], dtype=np.int64)
    positions = np.array([s.start for s in jobs], dtype=np.int64)
    counts = np.array([num_splits(s) for s in jobs], dtype=np.int64)
    firsts = np.cumsum(counts) - counts
    of = np.repeat(np.arange(len(jobs)), counts)  # [splits] the job
    begins = (np.arange(len(of)) - firsts[of]) * SPLIT_SLOTS
    pieces = np.stack((rows[of], positions[of], np.ones_like(of), tables_begin[of], begins), 1)
    return np.stack((rows, firsts, counts), 1), pieces


def _tiles(prompts: list[Segment], tables_begin: Ints, queries: int) -> Ints:
    """`Work.tiles`, those that see the most first, so that processors finish together."""
    tiles = [
        (s.first + done, s.start + done, min(queries, s.count - done), table, 0)
        for s, table in zip(prompts, tables_begin, strict=True)
        for done in range(0, s.count, queries)
    ]
    tiles.sort(key=lambda tile: tile[1], reverse=True)
    return np.array(tiles, dtype=np.int64).reshape(-1, 5)
