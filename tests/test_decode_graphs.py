"""Decoding by replay. Without a GPU the graphs are what they hold, computed again; interpreted kernels do the rest."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from fakes_worker import BLOCK_TOKENS, SPEC, FakeJob, FakeStage, greedy_tokens, make_cache
from torch import Tensor

from common.topology import partition
from worker.attention.triton_paged import TritonAttention, TritonKernel
from worker.attention.triton_work import Work
from worker.decode_graphs import DecodeGraphs, Replay, padded_sizes
from worker.inputs import Inputs, build_inputs

triton_kernels = pytest.importorskip(
    "worker.attention.triton_kernels", reason="no Triton", exc_type=ModuleNotFoundError
)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


def computed_again(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    result = compute()
    return lambda: result.copy_(compute()), result


class Stage:
    """The whole fake model, with graphs for its decode iterations."""

    def __init__(self, jobs: int = 4, blocks: int = 32) -> None:
        self.cache = make_cache(DEVICE.type, blocks=blocks)
        self.model = FakeStage(SPEC, partition(SPEC, 1)[0], DEVICE.type)
        self.kernel = TritonKernel(self.cache, triton_kernels)
        record = computed_again if DEVICE.type == "cpu" else None
        x = torch.zeros(jobs, dtype=torch.int64, device=DEVICE)
        with torch.inference_mode():
            self.graphs = DecodeGraphs(self.model, self.kernel, self.cache, x, record)

    def inputs(self, *jobs: FakeJob) -> Inputs:
        return build_inputs([job.entry() for job in jobs], BLOCK_TOKENS, DEVICE)

    @torch.inference_mode()
    def step(self, *jobs: FakeJob) -> bool:
        """Each job's next token; whether a graph was used."""
        inputs = self.inputs(*jobs)
        fits = self.graphs.fit(inputs)
        if fits:
            hidden = self.graphs.run(inputs.tokens, inputs)
        else:
            hidden = self.model.forward(inputs.tokens, inputs.positions, self.kernel.attention(inputs))
        for job, token in zip(jobs, self.model.logits(hidden[inputs.sampled]).argmax(1).tolist(), strict=True):
            job.tokens.append(token)
        return fits


def test_jobs_that_come_and_go_say_what_the_dense_model_says() -> None:
    stage = Stage()
    prompts = [[5, 17, 3, 44, 9, 60, 2], [8], [71, 13, 13, 30]]
    jobs = [FakeJob(i, list(prompt), list(range(6 * i, 6 * i + 6))) for i, prompt in enumerate(prompts)]
    assert not stage.step(*jobs)
    for batch in (jobs, jobs[:1], jobs[:0:-1]):
        assert stage.step(*batch)
    for job, prompt in zip(jobs, prompts, strict=True):
        assert job.tokens[len(prompt) :] == greedy_tokens(prompt, len(job.tokens) - len(prompt))


def test_what_was_returned_stays_when_the_graph_runs_again() -> None:
    stage, (one, other) = Stage(), (FakeJob(0, [5], [0]), FakeJob(1, [60], [1]))
    with torch.inference_mode():
        inputs = stage.inputs(one)
        hidden = stage.graphs.run(inputs.tokens, inputs)
        before = hidden.clone()
        inputs = stage.inputs(other)
        stage.graphs.run(inputs.tokens, inputs)
    assert torch.equal(hidden, before)


def test_recording_and_padding_leave_the_cache_as_it_was() -> None:
    stage, job = Stage(), FakeJob(0, [5], [7])
    assert not stage.cache.device.any()
    assert stage.step(job)
    written = [block for block, numbers in enumerate(stage.cache.device) if numbers.any()]
    assert written == [7]


def test_what_a_graph_reads_and_writes_lives_as_long_as_the_graphs() -> None:
    stage, made = Stage(), list[weakref.ref[TritonAttention]]()

    class Watched(TritonKernel):
        def attention_of(self, work: Work) -> TritonAttention:
            attention = super().attention_of(work)
            made.append(weakref.ref(attention))
            return attention

    def forgotten(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        return (lambda: None), compute()

    x = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with torch.inference_mode():
        graphs = DecodeGraphs(stage.model, Watched(stage.cache, triton_kernels), stage.cache, x, forgotten)
    gc.collect()
    assert [attention() is not None for attention in made] == [True]
    del graphs
    gc.collect()
    assert [attention() for attention in made] == [None]


def test_prompts_and_more_jobs_or_context_than_there_is_room_for_are_left_to_others() -> None:
    stage = Stage(jobs=2, blocks=64)
    short = [FakeJob(i, [5], [i]) for i in range(3)]
    assert stage.graphs.fit(stage.inputs(*short[:2]))
    assert not stage.graphs.fit(stage.inputs(FakeJob(3, [5, 6], [9])))
    short = [FakeJob(i, [5], [i]) for i in range(3)]
    assert not stage.graphs.fit(stage.inputs(*short))
    everything = [FakeJob(i, [0] * 1000, list(range(250)), done=999) for i in range(2)]
    assert not stage.graphs.fit(stage.inputs(*everything))


def test_small_batches_are_padded_to_powers_of_two_and_large_ones_by_sixteen() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(6) == [1, 2, 4, 6]
    assert padded_sizes(16) == [1, 2, 4, 8, 16]
    assert padded_sizes(60) == [1, 2, 4, 8, 16, 32, 48, 60]
