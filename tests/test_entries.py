"""What an entry of a plan says about drawing, for ordinary jobs and for particular ones."""

from typing import Any

from fakes import FixedMask

from common.records import UNSEEN, Entry, Penalties, Sampling, Shaping, pack_blocks
from gateway.generation import Generation
from gateway.scheduling.entries import entry_of
from gateway.scheduling.job import Job
from gateway.scheduling.turn import Share


def entry(output: list[int] | None = None, **options: Any) -> Entry:
    job = Job(3, Generation(prompt=[1, 2], max_tokens=10, **options), arrival=0.0, output=output or [])
    return entry_of(job, Share(job.pending, prefills=not output, gives=True))


def chunk(job: Job, tokens: int) -> Entry:
    return entry_of(job, Share(tokens, prefills=True, gives=tokens == job.pending))


def test_an_ordinary_job_sends_nothing_that_is_rare() -> None:
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7}
    assert entry(**options) == Entry(3, 0, [1, 2], pack_blocks([]), Sampling(0.5, 0.9, 5, 0.1, 7), None, None)


def test_all_but_the_last_chunk_of_a_prompt_draw_nothing() -> None:
    job = Job(3, Generation(prompt=[1, 2, 3], max_tokens=10, presence_penalty=1.0, logprobs=1), arrival=0.0)
    assert chunk(job, 2) == Entry(3, 0, [1, 2], pack_blocks([]), None, None, 1)


def test_penalties_travel_with_the_tokens_that_they_look_at() -> None:
    assert entry([7], frequency_penalty=0.5).shaping == Shaping(penalties=Penalties(0.0, 0.5, 1.0, [], [7]))
    assert entry([7], repetition_penalty=1.2).shaping == Shaping(penalties=Penalties(0.0, 0.0, 1.2, [1, 2], [7]))


def test_stop_tokens_are_forbidden_until_the_minimum_is_reached() -> None:
    options: dict[str, Any] = {"min_tokens": 2, "stop_tokens": frozenset({9, 8})}
    assert [entry([7] * said, **options).shaping for said in range(3)] == [
        Shaping(forbidden=[8, 9]),
        Shaping(forbidden=[8, 9]),
        None,
    ]


def test_the_last_token_of_a_bad_word_is_forbidden_where_the_others_were_just_said() -> None:
    words = ((5,), (6, 7), (6, 6, 8))
    forbidden = {(): [5], (6,): [5, 7], (6, 6): [5, 7, 8], (6, 6, 1): [5]}
    for output, expected in forbidden.items():
        assert entry(list(output), bad_words=words).shaping == Shaping(forbidden=expected)


def test_a_bias_and_a_mask_are_passed_on() -> None:
    shaping = entry(logit_bias=((4, -1.5),), constraint=FixedMask(b"\x0f")).shaping
    assert shaping == Shaping(bias=[(4, -1.5)], allowed=b"\x0f")


def test_wanted_logprobs_are_asked_for() -> None:
    assert entry(logprobs=5).logprobs == 5


def test_the_prompts_tokens_are_scored_where_that_is_asked_for() -> None:
    job = Job(3, Generation(prompt=[1, 2, 3, 4], max_tokens=10, logprobs=1, prompt_logprobs=True), arrival=0.0)
    assert (chunk(job, 2).scored, chunk(job, 4).scored) == ([2, 3], [2, 3, 4])
    job.computed = 2
    assert chunk(job, 2).scored == [4]
    job.depart(2, gives=True)
    assert chunk(job, 1).scored == []


def test_a_token_that_a_plan_in_flight_gives_is_computed_unseen() -> None:
    job = Job(3, Generation(prompt=[1, 2, 3, 4], max_tokens=10), arrival=0.0)
    job.depart(4, gives=True)
    assert (chunk(job, 1).start, chunk(job, 1).tokens) == (4, [UNSEEN])
    job.land(4)
    job.output.append(5)
    assert (chunk(job, 1).start, chunk(job, 1).tokens) == (4, [5])
