"""Whole jobs through the real engine and real stages: exact against transformers, and the same on every schedule."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import reference
from transformers import LlamaConfig
from world import Answer, run_world

from common.model_files import locate
from common.spec_reader import read_spec
from gateway.allowed_tokens import AllowedTokens
from gateway.generation import Generation
from gateway.text.conversation import Conversation
from gateway.text.text_model import TextModel, load_text_model

# Where stages compute, and how they keep matrices.
CPU: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "weights": "exact"}
CUDA = pytest.param({**CPU, "device": "cuda"}, marks=pytest.mark.gpu)
on_every_device = pytest.mark.parametrize("mode", [CPU, CUDA], ids=["cpu", "cuda"])
in_every_mode = pytest.mark.parametrize(
    "mode", [CPU, {**CPU, "weights": "bf16"}, {**CPU, "weights": "int8"}, CUDA], ids=["cpu", "bf16", "int8", "cuda"]
)
Alone = Callable[[dict[str, Any]], list[Answer]]

# Whatever the machine does, an iteration seems to take ten seconds and each level gives about one: jobs take turns.
TAKING_TURNS: dict[str, Any] = {"quantum_ms": 1000, "quantum_growth": 1.001, "num_levels": 400, "aging": 0.0}


def ten_seconds_each_time() -> Callable[[], float]:
    return map(float, count(0, 10)).__next__


# The device holds about three of the thirty jobs.
CROWDED: dict[str, Any] = {"kv_device_blocks": 14, "max_batch_jobs": 2, "max_context": 112, **TAKING_TURNS}
# Deferred jobs never make room for others: only several that fit to their ends can take turns.
ROOMY: dict[str, Any] = {**CROWDED, "kv_device_blocks": 28, "max_batch_jobs": 1}


def thirty_jobs(vocab_size: int) -> list[Generation]:
    """Greedy and seeded sampling, penalties too, prompts and outputs of many lengths."""
    rng = random.Random(11)
    return [
        Generation(
            prompt=[rng.randrange(3, vocab_size) for _ in range(rng.randint(5, 60))],
            max_tokens=rng.randint(6, 24),
            temperature=0.0 if index % 2 else 0.9,
            top_p=0.9 if index % 3 == 0 else 1.0,
            top_k=20 if index % 4 == 0 else 0,
            seed=index,
            frequency_penalty=0.3 if index % 5 == 0 else 0.0,
            repetition_penalty=1.1 if index % 7 == 0 else 1.0,
        )
        for index in range(30)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    reference.random_model(config, folder)
    return folder


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Alone:
    """Answers each of the thirty jobs by itself, on a CPU."""

    @cache
    def answers(weights: str) -> list[Answer]:
        options = {"model": str(tiny), "threads": 1, "device": "cpu", "weights": weights}
        return run_world(thirty_jobs(300), one_by_one=True, **options)

    return lambda mode: answers(mode["weights"])


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@in_every_mode
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_tokens_do_not_depend_on_other_jobs_or_stages(
    tiny: Path, alone: Alone, stages: int, mode: dict[str, Any]
) -> None:
    # Of 4 jobs, so that every number of stages is sent an iteration ahead.
    options: dict[str, Any] = {"threads": 1, **mode, "pipeline_parallel": stages, "max_batch_jobs": 4}
    together = run_world(thirty_jobs(300), model=str(tiny), **options)
    assert tokens(together) == tokens(alone(mode))


@in_every_mode
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("strategy", ["proactive", "reactive"])
def test_tokens_survive_offload_of_every_job(
    tiny: Path, alone: Alone, strategy: str, stages: int, mode: dict[str, Any]
) -> None:
    crowded = run_world(
        thirty_jobs(300),
        model=str(tiny),
        threads=1,
        **mode,
        kv_strategy=strategy,
        kv_host_blocks=500,
        pipeline_parallel=stages,
        clock=ten_seconds_each_time(),
        **{**CROWDED, "max_batch_jobs": 2 // stages},
    )
    assert tokens(crowded) == tokens(alone(mode))
    assert all(answer.trace.preemptions and answer.trace.offloaded_bytes for answer in crowded)
    assert all(answer.trace.uploaded_bytes <= answer.trace.offloaded_bytes for answer in crowded)
    assert sum(answer.trace.uploaded_bytes for answer in crowded) > 0


@in_every_mode
def test_tokens_survive_recomputing_every_job(tiny: Path, alone: Alone, mode: dict[str, Any]) -> None:
    crowded = run_world(
        thirty_jobs(300),
        model=str(tiny),
        threads=1,
        **mode,
        kv_strategy="recompute",
        clock=ten_seconds_each_time(),
        **CROWDED,
    )
    assert tokens(crowded) == tokens(alone(mode))
    assert all(answer.trace.recomputes for answer in crowded)


def test_tokens_survive_deferring(tiny: Path, alone: Alone) -> None:
    crowded = run_world(
        thirty_jobs(300),
        model=str(tiny),
        threads=1,
        **CPU,
        kv_strategy="defer",
        clock=ten_seconds_each_time(),
        **ROOMY,
    )
    assert tokens(crowded) == tokens(alone(CPU))
    assert sum(answer.trace.preemptions > 0 for answer in crowded) >= 5
    assert not any(answer.trace.offloaded_bytes or answer.trace.recomputes for answer in crowded)


def test_tokens_survive_both_memories_being_full(tiny: Path, alone: Alone) -> None:
    crowded = run_world(thirty_jobs(300), model=str(tiny), threads=1, **CPU, kv_host_blocks=12, **CROWDED)
    assert tokens(crowded) == tokens(alone(CPU))


@pytest.fixture(scope="module")
def family(tiny: Path) -> tuple[list[Generation], list[Answer]]:
    """Jobs whose prompts begin alike, some with the same prompt, some going on from others' answers; each by itself."""
    jobs = thirty_jobs(300)
    beginning = jobs[0].prompt * 4
    for index, job in enumerate(jobs):
        prompt = beginning[: 16 + 5 * (index % 6)] + (job.prompt[:8] if index % 3 else [])
        jobs[index] = replace(job, prompt=prompt, cache_salt="pepper" if index % 10 == 9 else "")
    options: dict[str, Any] = {"model": str(tiny), "threads": 1, "device": "cpu", "prefix_cache": False}
    answers = run_world(jobs, one_by_one=True, **options)
    again = [
        replace(job, prompt=[*job.prompt, *answer.tokens, 5]) for job, answer in zip(jobs[:8], answers[:8], strict=True)
    ]
    return jobs + again, answers + run_world(again, one_by_one=True, **options)


@on_every_device
@pytest.mark.parametrize(
    ("strategy", "stages", "chunk"),
    [
        ("proactive", 1, 0),
        ("proactive", 2, 20),
        ("reactive", 1, 20),
        ("reactive", 2, 0),
        ("recompute", 1, 20),
    ],
)
def test_tokens_survive_sharing_kv_while_jobs_take_turns_and_it_moves(
    tiny: Path,
    family: tuple[list[Generation], list[Answer]],
    *,
    chunk: int,
    strategy: str,
    stages: int,
    mode: dict[str, Any],
) -> None:
    jobs, alone = family
    crowded = run_world(
        jobs,
        model=str(tiny),
        threads=1,
        **mode,
        kv_strategy=strategy,
        kv_host_blocks=500,
        pipeline_parallel=stages,
        prefill_chunk_tokens=chunk,
        block_tokens=4,
        clock=ten_seconds_each_time(),
        **{**CROWDED, "kv_device_blocks": 56, "max_batch_jobs": 2 // stages},
    )
    assert tokens(crowded) == tokens(alone)
    assert sum(answer.trace.cached_tokens > 0 for answer in crowded) > 10
    if strategy != "recompute":
        assert sum(answer.trace.offloaded_bytes > 0 for answer in crowded) > 10


@on_every_device
@pytest.mark.parametrize(("strategy", "stages"), [("proactive", 2), ("reactive", 1)])
def test_tokens_survive_prompts_in_chunks_whose_jobs_lose_their_place_in_between(
    tiny: Path, alone: Alone, strategy: str, stages: int, mode: dict[str, Any]
) -> None:
    crowded = run_world(
        thirty_jobs(300),
        model=str(tiny),
        threads=1,
        **mode,
        kv_strategy=strategy,
        kv_host_blocks=500,
        pipeline_parallel=stages,
        prefill_chunk_tokens=7,
        clock=ten_seconds_each_time(),
        **{**CROWDED, "max_batch_jobs": 2 // stages},
    )
    assert tokens(crowded) == tokens(alone(mode))
    assert sum(answer.trace.iterations > len(answer.tokens) for answer in crowded) > 10


def test_logprobs_and_what_bends_logits_do_not_depend_on_the_schedule(tiny: Path) -> None:
    jobs = [
        replace(
            job,
            logprobs=index % 4,
            prompt_logprobs=index % 2 == 0,
            logit_bias=((3, 2.0), (4, -100.0)),
            bad_words=((5, 6), (7,)),
            constraint=AllowedTokens(range(0, 200), 300) if index % 3 else None,
        )
        for index, job in enumerate(thirty_jobs(300))
    ]
    options: dict[str, Any] = {"model": str(tiny), "threads": 1, "device": "cpu"}
    alone = run_world(jobs, one_by_one=True, **options)
    options["max_batch_tokens"] = 20  # prompts come in chunks
    crowded = run_world(jobs, kv_host_blocks=500, clock=ten_seconds_each_time(), **CROWDED, **options)
    assert tokens(crowded) == tokens(alone)
    for answer, other in zip(crowded, alone, strict=True):
        assert [len(said.top) for said in answer.logprobs] == [len(said.top) for said in other.logprobs]
        drawn = [said.drawn for said in other.logprobs]
        assert [said.drawn for said in answer.logprobs] == pytest.approx(drawn, abs=1e-4)
        scores = [said.drawn for said in other.prompt_logprobs]
        assert [said.drawn for said in answer.prompt_logprobs] == pytest.approx(scores, abs=1e-4)
    for index, (job, answer) in enumerate(zip(jobs, alone, strict=True)):
        assert len(answer.prompt_logprobs) == (len(job.prompt) - 1 if index % 2 == 0 else 0)
    said = [token for answer in alone for token in answer.tokens]
    assert not {4, 7} & {*said}
    assert all(token < 200 for index, answer in enumerate(alone) if index % 3 for token in answer.tokens)


@pytest.mark.parametrize("policy", ["mlfq", "fcfs", "static", "srpt"])
def test_tokens_do_not_depend_on_the_policy(tiny: Path, alone: Alone, policy: str) -> None:
    assert tokens(run_world(thirty_jobs(300), model=str(tiny), threads=1, **CPU, policy=policy)) == tokens(alone(CPU))


# ---------------------------------------------------------------------------- the embedded model

CHATS = [
    "What is the capital of France?",
    "Count from 1 to 20.",
    "Wie viele Tage hat ein Jahr?",
    "日本の首都はどこですか",
    "Сколько будет 12345 + 67890?",
    "ما هي عاصمة مصر؟",
    "Write a haiku about the sea 🌊🌊.",
]
RAW = [
    "Once upon a time",
    "3.14159265358979323846",
    "def fibonacci(n):\n    ",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "In 1969, 2 of 3 astronauts walked on the moon; in 1972, 12 had. " * 8,
    "国破山河在 城春草木深。感时花溅泪 恨别鸟惊心。",
    "\n\n\t  spaces   and\ttabs\n",
    "SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name ORDER BY 2 DESC;",
    "0 1 1 2 3 5 8 13 21 34 55",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 20,
    "the of and to in is that for it was on are as with his they " * 45,
    "Der Mond ist aufgegangen, die goldnen Sternlein prangen",
    '{"name": "skipjoin", "version": [1, 2, 3], "ok": true}',
]


@pytest.fixture(scope="module")
def language() -> TextModel:
    files = locate(None)
    return load_text_model(files, read_spec(files))


@pytest.fixture(scope="module")
def prompts(language: TextModel) -> list[list[int]]:
    assert language.chat is not None
    chats = [language.chat.render(Conversation([{"role": "user", "content": text}])) for text in CHATS]
    encoded = [language.tokenizer.encode(text, add_special_tokens=False) for text in chats + RAW]
    assert len(encoded) == 20
    assert min(map(len, encoded)) <= 5
    assert max(map(len, encoded)) >= 700
    return encoded


@pytest.mark.model
@pytest.mark.timeout(600)
def test_greedy_tokens_and_logprobs_equal_those_of_transformers(prompts: list[list[int]]) -> None:
    model = reference.reference_model()
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "logprobs": 5, "prompt_logprobs": True}
    ours = run_world([Generation(prompt=prompt, **options) for prompt in prompts])
    for prompt, answer in zip(prompts, ours, strict=True):
        # Its own tokens go in, so each is the greedy one after those before it, if it is at all.
        logprobs = reference.logits(model, prompt + answer.tokens)[:-1].log_softmax(-1)
        assert answer.tokens == logprobs[len(prompt) - 1 :].argmax(-1).tolist()
        everything = zip(prompt[1:] + answer.tokens, answer.prompt_logprobs + answer.logprobs, logprobs, strict=True)
        for token, said, expected in everything:
            assert said.drawn == pytest.approx(expected[token].item(), abs=1e-3)
            assert [logprob for _, logprob in said.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-3)
            assert [expected[one].item() for one, _ in said.top] == pytest.approx(
                [logprob for _, logprob in said.top], abs=1e-3
            )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_embedded_model_answers_the_same_on_every_schedule() -> None:
    jobs = [
        Generation(
            prompt=job.prompt,
            max_tokens=3 + job.max_tokens // 4,
            temperature=job.temperature,
            top_p=job.top_p,
            seed=job.seed,
        )
        for job in thirty_jobs(40_000)
    ]
    together = tokens(run_world(jobs))
    assert tokens(run_world(jobs, one_by_one=True)) == together
    for stages in (2, 3):
        assert tokens(run_world(jobs, pipeline_parallel=stages)) == together
    for strategy in ("proactive", "reactive", "recompute", "defer"):
        crowded = run_world(jobs, kv_strategy=strategy, kv_host_blocks=500, clock=ten_seconds_each_time(), **CROWDED)
        assert tokens(crowded) == together, strategy
        if strategy in ("proactive", "reactive"):
            assert all(answer.trace.preemptions and answer.trace.offloaded_bytes for answer in crowded), strategy
        if strategy == "recompute":  # one that is done before the others are there loses nothing
            assert sum(answer.trace.recomputes > 0 for answer in crowded) > 20
