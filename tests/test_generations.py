"""From requests to jobs: limits, defaults, seeds."""

import json
from typing import Any

import pytest
from fakes_gateway import END, FakeEngine, byte_text_model
from prometheus_client import CollectorRegistry

from common.config import Config
from gateway.api.errors import ApiError
from gateway.api.generations import OutputLength, check_choices, check_prompt, generations
from gateway.api.schema import CompletionRequest, decode_completion
from gateway.api.service import Service
from gateway.generation import Generation
from gateway.metrics import HttpMetrics

PROMPT = [1, 2, 3]


def service(**options: Any) -> Service:
    """A context of 20 tokens."""
    return Service(Config(**options), FakeEngine(max_context=20), byte_text_model(), HttpMetrics(CollectorRegistry()))


def request(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps({"prompt": "x"} | fields).encode())


def jobs(default: int | None = None, **fields: Any) -> list[Generation]:
    asked = request(**fields)
    return generations(service(), asked, [PROMPT], OutputLength(asked.max_tokens, "max_tokens", default))


def error_of(call: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value.body["error"]


def test_parameters_reach_the_job() -> None:
    [job] = jobs(
        max_tokens=5,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        presence_penalty=0.3,
        frequency_penalty=-0.3,
        repetition_penalty=1.1,
    )
    assert job == Generation(
        prompt=PROMPT,
        max_tokens=5,
        min_tokens=2,
        stop_tokens=frozenset({END}),
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        presence_penalty=0.3,
        frequency_penalty=-0.3,
        repetition_penalty=1.1,
    )


def test_defaults_are_openais() -> None:
    [job] = jobs(seed=0)
    assert job == Generation(prompt=PROMPT, max_tokens=17, stop_tokens=frozenset({END}))


def test_tiny_temperatures_are_greedy_and_minus_one_is_every_token() -> None:
    [job] = jobs(temperature=1e-300, top_k=-1)
    assert (job.temperature, job.top_k) == (0.0, 0)


def test_without_a_wish_the_output_fills_the_context_or_the_default() -> None:
    assert jobs()[0].max_tokens == 17
    assert jobs(default=16)[0].max_tokens == 16
    assert jobs(default=18)[0].max_tokens == 17


def test_a_wish_may_fill_the_context_exactly_and_no_more() -> None:
    assert jobs(max_tokens=17)[0].max_tokens == 17
    error = error_of(lambda: jobs(max_tokens=18))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


def test_more_tokens_at_least_than_at_most_are_refused() -> None:
    assert error_of(lambda: jobs(max_tokens=4, min_tokens=5))["param"] == "min_tokens"
    assert error_of(lambda: jobs(min_tokens=18))["param"] == "min_tokens"


def test_ignoring_the_end_leaves_no_stop_tokens() -> None:
    [job] = jobs(ignore_eos=True, max_tokens=5)
    assert job.stop_tokens == frozenset()


def test_choices_have_seeds_of_their_own_and_the_first_has_the_clients() -> None:
    seeds = [job.seed for job in jobs(seed=5, n=4)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 4
    assert seeds == [job.seed for job in jobs(seed=5, n=4)]
    assert seeds[:2] == [job.seed for job in jobs(seed=5, n=2)]


def test_negative_seeds_become_unsigned() -> None:
    assert jobs(seed=-1)[0].seed == 2**64 - 1


def test_without_a_seed_every_request_draws_one() -> None:
    assert jobs()[0].seed != jobs()[0].seed


def test_equal_prompts_with_one_seed_get_equal_jobs() -> None:
    asked = request(seed=3, n=2)
    first, second, third, fourth = generations(service(), asked, [PROMPT, PROMPT], OutputLength(1, "max_tokens", None))
    assert (first, second) == (third, fourth)


def test_an_oracle_needs_to_know_lengths() -> None:
    def ask(**fields: Any) -> list[Generation]:
        asked = request(**fields)
        return generations(service(policy="srpt"), asked, [PROMPT], OutputLength(asked.max_tokens, "max_tokens", 16))

    assert ask(ignore_eos=True, max_tokens=5)[0].max_tokens == 5
    for fields in ({}, {"ignore_eos": True}, {"max_tokens": 5}, {"ignore_eos": True, "max_tokens": 5, "stop": "x"}):
        assert "srpt" in error_of(lambda fields=fields: ask(**fields))["message"]


def test_prompts_must_be_tokens_of_the_model_and_leave_room() -> None:
    check_prompt(service(), [0, 299] * 9 + [1], "prompt")
    for bad in ([], [-1], [300], [2**63], [10**30]):
        assert error_of(lambda bad=bad: check_prompt(service(), bad, "prompt"))["code"] == "invalid_value"
    error = error_of(lambda: check_prompt(service(), [1] * 20, "prompt"))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_more_choices_than_can_ever_wait_are_refused() -> None:
    small = service(max_waiting_jobs=10)
    check_choices(small, request(n=5), num_prompts=2)
    assert error_of(lambda: check_choices(small, request(n=5), num_prompts=3))["param"] == "n"
