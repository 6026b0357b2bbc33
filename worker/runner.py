"""One stage's share of one iteration: activations in, layers, activations or tokens out."""

import time
from typing import TypeVar

import torch
from msgspec.structs import replace
from torch import Tensor

from common.records import UNSEEN, Entry, Logprobs, Plan, Result, pack_blocks
from common.topology import Stage
from worker.attention import native, triton_paged
from worker.attention.paged import PagedAttention, Scratch
from worker.copier import Copies
from worker.decode_graphs import DecodeGraphs
from worker.inputs import Inputs, build_inputs
from worker.kv_cache import KvCache
from worker.link import Link
from worker.logprobs import RawDistribution, score
from worker.models.stage_model import Attention, StageModel
from worker.sampler import sample
from worker.transfer import wait_for

T = TypeVar("T")


class Runner:
    """Holds what an iteration needs. Iterations are run one after the other, in the order of their plans."""

    def __init__(
        self,
        model: StageModel,
        stage: Stage,
        cache: KvCache,
        link: Link,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        timeout_s: float,
        graph_jobs: int = 0,
    ) -> None:
        """dtype: of activations. graph_jobs: up to which decode iterations become CUDA graphs, on devices with them."""
        self._model = model
        self._stage = stage
        self._cache = cache
        self._link = link
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._timeout_s = timeout_s
        self._device = cache.torch_device
        self._scratch = Scratch(cache)
        self._triton = triton_paged.open_kernel(cache)
        self._kernel = self._triton or native.open_kernel(cache, dtype)
        self._graph_jobs = graph_jobs
        self._graphs: DecodeGraphs | None = None
        self._drawn: dict[int, int] = {}  # by job, in the last iteration

    def expect(self, plan: Plan) -> None:
        """Let the plan's activations arrive while plans before it run."""
        if not self._stage.is_first:
            self._link.expect(_num_rows(plan.entries))

    @torch.inference_mode()
    def run(self, plan: Plan, copies: Copies) -> Result | None:
        """Run one iteration and hand it on; the last stage returns the result.

        An empty batch still goes through all stages, as one row of zeros: its result says that all copies are done.
        Raises LinkLost, and TimeoutError when the copies take too long.
        """
        entries = [self._seen(entry) for entry in plan.entries]
        inputs = build_inputs(entries, self._cache.block_tokens, self._device) if entries else None
        x = self._receive(entries, inputs)
        begun = time.perf_counter()
        if plan.copies_first:
            copies.wait(self._timeout_s)
        hidden = self._forward(x, inputs)
        copies.wait(self._timeout_s)
        if not self._stage.is_last:
            self._link.send(hidden)
            return None
        scores = self._score(hidden, inputs, entries)
        tokens, logprobs = self._sample(hidden, inputs, entries)
        self._drawn = {entry.job_id: token or 0 for entry, token in zip(entries, tokens, strict=True)}
        return Result(plan.seq, tokens, copies.stalled_s(), time.perf_counter() - begun, logprobs, scores)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run a tiny prompt and one more token, and record graphs: no job pays for first times. Writes block 0."""
        for start, count in ((0, 2), (2, 1)):
            blocks = pack_blocks([0] * -(-(start + count) // self._cache.block_tokens))
            inputs = build_inputs([Entry(0, start, [0] * count, blocks, None)], self._cache.block_tokens, self._device)
            x = inputs.tokens if self._stage.is_first else self._zeros(count)
            hidden = self._forward(x, inputs)
            if self._stage.is_last:
                self._model.logits(hidden[-1:])
        if self._triton is not None and self._graph_jobs:
            ids = torch.zeros(self._graph_jobs, dtype=torch.int64, device=self._device)
            x = ids if self._stage.is_first else self._zeros(self._graph_jobs)
            self._graphs = DecodeGraphs(self._model, self._triton, self._cache, x)

    def _seen(self, entry: Entry) -> Entry:
        """The entry with the token that the last iteration drew for it; one without goes on with any: it has failed."""
        if entry.tokens[-1] != UNSEEN:
            return entry
        return replace(entry, tokens=[*entry.tokens[:-1], self._drawn[entry.job_id]])

    def _receive(self, entries: list[Entry], inputs: Inputs | None) -> Tensor:
        if not self._stage.is_first:
            return self._link.receive(_num_rows(entries))
        return inputs.tokens if inputs else self._zeros(1)

    def _forward(self, x: Tensor, inputs: Inputs | None) -> Tensor:
        if inputs is None:
            return self._zeros(1)
        if self._graphs is not None and self._graphs.fit(inputs):
            return self._graphs.run(x, inputs)
        return self._model.forward(x, inputs.positions, self._attention(inputs))

    def _attention(self, inputs: Inputs) -> Attention:
        if self._kernel is not None:
            return self._kernel.attention(inputs)
        return PagedAttention(self._cache, self._scratch, inputs)

    def _sample(
        self, hidden: Tensor, inputs: Inputs | None, entries: list[Entry]
    ) -> tuple[list[int | None], list[Logprobs | None]]:
        """One answer per entry, and logprobs if any entry wants them. Returns when the device is done."""
        wanted = [i for i, entry in enumerate(entries) if entry.sampling is not None]
        if inputs is not None and wanted:
            rows = hidden if len(inputs.sampled) == len(hidden) else hidden[inputs.sampled]
            logits, sampled = self._model.logits(rows), [entries[i] for i in wanted]
            raw = RawDistribution(logits, sampled)
            drawn = sample(logits, sampled)
            return _placed(wanted, drawn, len(entries)), _placed(wanted, raw.of(drawn), len(entries))
        wait_for(self._device)
        return [None] * len(entries), []

    def _score(self, hidden: Tensor, inputs: Inputs | None, entries: list[Entry]) -> list[list[Logprobs]]:
        """Of the tokens that entries have already, for those who want that; nothing when nobody does."""
        if inputs is None or not any(entry.scored for entry in entries):
            return []
        rows = [hidden[segment.first : segment.first + segment.count] for segment in inputs.segments]
        return [score(self._model.logits, own, entry) for own, entry in zip(rows, entries, strict=True)]

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._hidden_size, dtype=self._dtype, device=self._device)


def _num_rows(entries: list[Entry]) -> int:
    """Of the activations between stages."""
    return sum(len(entry.tokens) for entry in entries) or 1


def _placed(places: list[int], answers: list[T | None], num_entries: int) -> list[T | None]:
    """The answers at the places of their entries, None at all others; nothing when there are no answers."""
    at = dict(zip(places, answers, strict=True)) if answers else {}
    return [at.get(i) for i in range(num_entries)] if at else []
