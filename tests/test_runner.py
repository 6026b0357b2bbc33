"""One stage's iteration, without gateway or channel."""

from concurrent.futures import Future

import pytest
import torch
from fakes_worker import BLOCK_TOKENS, DEVICES, GREEDY, SPEC, FakeJob, FakeStage, greedy_tokens, make_cache

from common.records import UNSEEN, Entry, Penalties, Plan, Result, Sampling, Setup, Shaping, pack_blocks
from common.topology import partition
from worker.copier import Copier, ThreadCopies, open_copier
from worker.link import LocalWiring
from worker.runner import Runner


class Pipeline:
    """All stages in one thread: a plan goes through them one after the other."""

    def __init__(
        self,
        num_stages: int = 1,
        device: str = "cpu",
        *,
        graph_jobs: int = 0,
        kv_dtype: torch.dtype = torch.float32,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        wiring = LocalWiring(timeout_s=0.1)
        setup = Setup(1, list(range(1, num_stages + 1)), 32, 32, "", 0)
        self.runners: list[Runner] = []
        self.copiers: list[Copier] = []
        for stage in partition(SPEC, num_stages):
            cache = make_cache(device, num_layers=len(stage.layers), dtype=kv_dtype, block_tokens=block_tokens)
            self.copiers.append(open_copier(cache))
            model = FakeStage(SPEC, stage, device)
            link = wiring.connect(setup, stage.index)
            sizes = {"hidden_size": SPEC.hidden_size, "graph_jobs": graph_jobs}
            self.runners.append(Runner(model, stage, cache, link, dtype=torch.float32, timeout_s=10.0, **sizes))
        self.caches = [runner._cache for runner in self.runners]
        self.seq = 0

    def run(self, *entries: Entry, offloads=(), uploads=(), copies_first: bool = False) -> Result:
        self.seq += 1
        plan = Plan(self.seq, 1, list(entries), list(offloads), list(uploads), copies_first)
        copies = [copier.start(plan.offloads, plan.uploads) for copier in self.copiers]
        *nothing, result = [runner.run(plan, c) for runner, c in zip(self.runners, copies, strict=True)]
        assert nothing == [None] * (len(self.runners) - 1)
        assert result is not None
        assert result.seq == self.seq
        return result


def generate(pipeline: Pipeline, jobs: list[FakeJob], count: int) -> list[list[int]]:
    """Decode all jobs in one batch until each has `count` tokens more."""
    prompts = [len(job.tokens) for job in jobs]
    for _ in range(count):
        for job, token in zip(jobs, pipeline.run(*(job.entry() for job in jobs)).tokens, strict=True):
            assert token is not None
            job.tokens.append(token)
    return [job.tokens[prompt:] for job, prompt in zip(jobs, prompts, strict=True)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_any_number_of_stages_says_what_the_dense_model_says(num_stages: int, device: str) -> None:
    prompts = [[5, 17, 3, 44, 9, 60, 2], [8], [71, 13, 13, 30]]
    jobs = [FakeJob(i, list(prompt), [i, 10 + i, 20 + i, 30 - i]) for i, prompt in enumerate(prompts)]
    expected = [greedy_tokens(prompt, 8) for prompt in prompts]
    assert generate(Pipeline(num_stages, device), jobs, 8) == expected
    assert len({tuple(tokens) for tokens in expected}) == 3


@pytest.mark.gpu
def test_graphs_say_what_the_dense_model_says() -> None:
    pipeline = Pipeline(2, "cuda", graph_jobs=3)
    for runner in pipeline.runners:
        runner.warm_up()
    jobs = [FakeJob(0, [5, 17, 3], [0, 1, 2]), FakeJob(1, [8], [3, 4, 5]), FakeJob(2, [71, 13], [6, 7, 8])]
    assert generate(pipeline, jobs[:1], 4) == [greedy_tokens([5, 17, 3], 4)]
    assert generate(pipeline, jobs[1:], 6) == [greedy_tokens([8], 6), greedy_tokens([71, 13], 6)]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("graph_jobs", [0, 2])
def test_an_iteration_waits_for_the_gpu_only_where_it_fetches_its_answer(graph_jobs: int) -> None:
    pipeline = Pipeline(1, "cuda", graph_jobs=graph_jobs)
    pipeline.runners[0].warm_up()
    drawn = Sampling(temperature=0.8, top_p=0.9, top_k=0, min_p=0.0, seed=1)
    shaping = Shaping(Penalties(0.1, 0.1, 1.1, [5], [8]), [(3, 1.0)], [4], b"\xff" * 13)
    batch = [Entry(0, 2, [8], pack_blocks([1]), drawn, shaping, 3), Entry(1, 0, [8], pack_blocks([0]), GREEDY)]
    pipeline.run(*batch)
    torch.cuda.set_sync_debug_mode("error")  # of torch's own waits; the one that is meant is explicit
    try:
        assert None not in pipeline.run(*batch, offloads=[(5, 1)], uploads=[(2, 6)]).tokens
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("block_tokens", [1, 2, 3])
def test_blocks_of_a_few_tokens_can_be_warmed_up_with(block_tokens: int) -> None:
    pipeline = Pipeline(block_tokens=block_tokens)
    pipeline.runners[0].warm_up()
    assert generate(pipeline, [FakeJob(0, [5, 17, 3], [0, 1, 2, 3, 4, 5, 6, 7])], 4) == [greedy_tokens([5, 17, 3], 4)]


def test_stages_that_keep_keys_and_values_in_fp16_say_the_same() -> None:
    # No two of the tokens are so close that rounding decides.
    assert generate(Pipeline(2, kv_dtype=torch.float16), [FakeJob(0, [5, 17, 3], [0, 1, 2])], 6) == [
        greedy_tokens([5, 17, 3], 6)
    ]


def test_what_is_handed_on_for_an_empty_batch_has_the_type_of_activations_not_of_the_cache() -> None:
    first, second = Pipeline(2, kv_dtype=torch.float16).runners
    first.run(Plan(1, 1, [], [], [], False), ThreadCopies(None))
    assert second._link.receive(1).dtype == torch.float32


def test_a_prompt_in_chunks_says_the_same_and_only_its_last_chunk_gives_a_token() -> None:
    prompt = [5, 17, 3, 44, 9, 60, 2, 81, 22, 7]
    pipeline, job = Pipeline(2), FakeJob(0, list(prompt), [4, 1, 9])
    assert pipeline.run(job.entry(3)).tokens == [None]
    assert pipeline.run(job.entry(4)).tokens == [None]
    assert pipeline.run(job.entry()).tokens == greedy_tokens(prompt, 1)


def test_a_token_that_was_not_seen_is_the_one_that_the_iteration_before_drew() -> None:
    prompts = [[5, 17, 3], [8, 60]]
    pipeline, jobs = Pipeline(), [FakeJob(i, list(prompt), [2 * i, 2 * i + 1]) for i, prompt in enumerate(prompts)]
    first = pipeline.run(*(job.entry() for job in jobs)).tokens
    ahead = [Entry(job.job_id, job.done, [UNSEEN], pack_blocks(job.blocks), GREEDY) for job in reversed(jobs)]
    second = pipeline.run(*ahead).tokens[::-1]
    assert [list(pair) for pair in zip(first, second, strict=True)] == [greedy_tokens(prompt, 2) for prompt in prompts]


def test_a_job_that_was_given_no_token_goes_on_with_any_and_spares_the_others() -> None:
    pipeline, job = Pipeline(), FakeJob(0, [5, 17, 3], [0, 1])
    nothing = Shaping(allowed=b"\0" * 13)
    doomed = Entry(1, 0, [8], pack_blocks([2]), GREEDY, nothing)
    first = pipeline.run(job.entry(), doomed).tokens
    assert first[1] is None
    second = pipeline.run(
        Entry(0, 3, [UNSEEN], pack_blocks(job.blocks), GREEDY), Entry(1, 1, [UNSEEN], pack_blocks([2]), GREEDY)
    ).tokens
    assert [first[0], second[0]] == greedy_tokens([5, 17, 3], 2)


def test_a_job_moved_to_host_and_back_to_other_blocks_goes_on_undisturbed() -> None:
    prompt = [5, 17, 3, 44, 9, 60, 2]
    pipeline, job, other = Pipeline(2), FakeJob(0, list(prompt), [0, 1, 2, 3]), FakeJob(1, [8, 9], [4, 5, 6])
    start = generate(pipeline, [job, other], 3)[0]
    assert pipeline.run(offloads=[(0, 7), (1, 3), (2, 0)]).tokens == []
    other.blocks, old = [4, 5, 6, 0, 1, 2, 3], other.blocks
    assert old == other.blocks[:3]
    generate(pipeline, [other], 14)  # grows over the blocks that the first job had
    job.blocks = [20, 9, 30, 31]
    first = pipeline.run(job.entry(), uploads=[(7, 20), (3, 9), (0, 30)], copies_first=True).tokens[0]
    assert first is not None
    job.tokens.append(first)
    assert [*start, first, *generate(pipeline, [job], 4)[0]] == greedy_tokens(prompt, 8)


@pytest.mark.parametrize("num_stages", [1, 3])
def test_an_empty_batch_answers_when_every_stage_has_copied(num_stages: int) -> None:
    pipeline = Pipeline(num_stages)
    for cache in pipeline.caches:
        cache.device[3] = 7.0
    assert pipeline.run(offloads=[(3, 1)]).tokens == []
    assert all((cache.host[1] == 7.0).all() for cache in pipeline.caches)


def test_a_row_that_is_not_finite_answers_none_and_spares_the_others() -> None:
    pipeline = Pipeline(2)
    pipeline.runners[0]._model._embedding[90] = torch.nan
    sick, healthy = FakeJob(0, [5, 90, 3], [0]), FakeJob(1, [8, 9], [1])
    assert pipeline.run(sick.entry(), healthy.entry()).tokens == [None, *greedy_tokens([8, 9], 1)]


def test_copies_that_never_end_raise_at_the_deadline() -> None:
    pipeline = Pipeline()
    pipeline.runners[0]._timeout_s = 0.01
    with pytest.raises(TimeoutError):
        pipeline.runners[0].run(Plan(1, 1, [], [], [], False), ThreadCopies(Future()))


@pytest.mark.parametrize("num_stages", [1, 2])
def test_warming_up_leaves_results_as_they_are(num_stages: int) -> None:
    pipeline = Pipeline(num_stages)
    for runner in pipeline.runners:
        runner.warm_up()
    assert generate(pipeline, [FakeJob(0, [5, 6], [0, 1])], 3) == [greedy_tokens([5, 6], 3)]
