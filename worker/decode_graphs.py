"""Decode iterations as CUDA graphs: one launch instead of a dozen for each layer, which a GPU outruns at small batches.

There is a graph for each padded number of jobs. All read and write the same memory: a batch is copied into it, and what
follows the batch there is not stored and attends to nothing. Batches with prompts, and those of more context than there
is room for, are computed without.

Memory: activations of the largest batch, which all graphs share, and room for splits of contexts. 4,096 of them, or a
million tokens in a batch, take 64 MiB with 32 heads of 128.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor

from worker.attention.triton_paged import TritonKernel
from worker.attention.triton_work import SPLIT_SLOTS, Work, lay_out, num_splits
from worker.inputs import Inputs
from worker.kv_cache import KvCache
from worker.models.stage_model import StageModel

_MOST_SPLITS = 4096
_STEP = 16  # jobs by which larger batches are padded at most; smaller ones to a power of two

_recording = threading.Lock()  # torch allows one capture at a time in a process

Replay = Callable[[], None]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Makes of a computation one that can be repeated, and the memory that its result will be in."""


class DecodeGraphs:
    """The graphs of one stage."""

    def __init__(
        self, model: StageModel, kernel: TritonKernel, cache: KvCache, x: Tensor, record: Record | None = None
    ) -> None:
        """Record them all.

        x: zeros, as many as there are jobs in the largest batch: [jobs] ids in the first stage, [jobs, hidden] in
        others. It becomes the graphs' own. record: by default as CUDA graphs.
        """
        record = record or _recorder()
        jobs, device = len(x), cache.torch_device
        longest = len(cache.device) * cache.block_tokens // SPLIT_SLOTS + 1  # splits of a job that has all blocks
        self._block_tokens = cache.block_tokens
        self._x = x
        self._positions = torch.zeros(jobs, dtype=torch.int64, device=device)
        self._work = Work.room(jobs, min(_MOST_SPLITS, jobs * longest), cache.block_tokens, device)
        self._attention = kernel.attention_of(self._work)  # has memory that the graphs write

        def forward(size: int) -> Callable[[], Tensor]:
            return lambda: model.forward(self._x[:size], self._positions[:size], self._attention)

        self._sizes = padded_sizes(jobs)
        # The largest first: it takes memory that is enough for the others.
        self._graphs = {size: record(forward(size)) for size in reversed(self._sizes)}

    def fit(self, inputs: Inputs) -> bool:
        """Whether there is a graph for this batch."""
        segments = inputs.segments
        return (
            len(segments) <= self._sizes[-1]
            and all(segment.count == 1 for segment in segments)
            and sum(map(num_splits, segments)) <= len(self._work.splits)
        )

    def run(self, x: Tensor, inputs: Inputs) -> Tensor:
        """What the stage makes of x, of a batch that fits: [jobs, hidden], in memory that nobody else writes."""
        jobs = len(x)
        replay, hidden = self._graphs[self._sizes[bisect_left(self._sizes, jobs)]]
        self._x[:jobs].copy_(x)
        self._positions[:jobs].copy_(inputs.positions)
        self._work.take(lay_out(inputs, self._block_tokens, 1))
        replay()
        return hidden[:jobs].clone()  # It may be on its way to the next stage when the graph runs again.


def padded_sizes(most: int) -> list[int]:
    """Numbers of jobs for which there is a graph, rising to `most`."""
    powers = [1 << exponent for exponent in range(_STEP.bit_length())]
    return sorted({size for size in (*powers, *range(_STEP, most, _STEP)) if size < most} | {most})


def _recorder() -> Record:
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        with _recording:
            compute()  # Compiles kernels and lets libraries get their memory, neither of which may happen in a capture.
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as nccl's, may go on using CUDA meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = compute()
        return graph.replay, result

    return record
