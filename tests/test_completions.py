"""/v1/completions through the official client."""

from typing import Any

import openai
import pytest
from fakes_gateway import NAME, FakeEngine, client_of


def echo(engine_job: Any) -> list[int]:
    return [*engine_job.prompt, 256]


def texts(answer: openai.types.Completion) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


def test_an_answer_has_all_that_openai_promises() -> None:
    with client_of() as client:
        answer = client.completions.create(model=NAME, prompt="Say hello", max_tokens=100)
    assert texts(answer) == ["Hello, world!"]
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", NAME, "cmpl-")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 13)


def test_sixteen_tokens_are_the_default() -> None:
    with client_of(FakeEngine("x" * 100)) as client:
        answer = client.completions.create(model=NAME, prompt="a")
    assert (texts(answer), answer.choices[0].finish_reason) == (["x" * 16], "length")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
        ("é😀", ["é😀"]),
    ],
)
def test_prompts_come_as_text_or_tokens_alone_or_in_lists(prompt: Any, expected: list[str]) -> None:
    with client_of(FakeEngine(echo)) as client:
        assert texts(client.completions.create(model=NAME, prompt=prompt)) == expected


def test_choices_are_numbered_prompt_by_prompt() -> None:
    with client_of(FakeEngine(echo)) as client:
        answer = client.completions.create(model=NAME, prompt=["a", "bb"], n=2)
    assert texts(answer) == ["a", "a", "bb", "bb"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [""], ["a", ""], [1, "a"], [1, [2]], [-1], [300], [2**63], [[1], [10**30]]]
)
def test_prompts_that_are_none_are_refused(prompt: Any) -> None:
    with client_of() as client, pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=prompt)
    assert caught.value.param == "prompt"


def test_the_prompt_may_leave_room_for_one_token_and_no_less() -> None:
    with client_of(FakeEngine(max_context=10)) as client:
        assert texts(client.completions.create(model=NAME, prompt="x" * 9)) == ["H"]
        assert texts(client.completions.create(model=NAME, prompt="x" * 9, max_tokens=1)) == ["H"]
        for prompt, length in (("x" * 10, 1), ("x" * 9, 2), ([120] * 10, 1)):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model=NAME, prompt=prompt, max_tokens=length)
            assert caught.value.code == "context_length_exceeded"


def test_more_prompts_than_can_wait_are_refused() -> None:
    with client_of(max_waiting_jobs=4) as client:
        client.completions.create(model=NAME, prompt=["a", "b"], n=2)
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=NAME, prompt=["a", "b", "c"], n=2)
    assert caught.value.param == "n"


def test_the_extras_of_other_servers_reach_the_engine() -> None:
    engine = FakeEngine("ab")
    extras = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True, "min_tokens": 2}
    with client_of(engine) as client:
        answer = client.completions.create(model=NAME, prompt="x", max_tokens=4, extra_body=extras)
    [job] = engine.jobs
    assert (job.top_k, job.min_p, job.repetition_penalty, job.min_tokens) == (5, 0.1, 1.2, 2)
    assert texts(answer) == ["aba"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4  # ignore_eos makes the end token one like the others


def test_a_long_prompt_is_encoded_beside_the_event_loop() -> None:
    engine = FakeEngine(max_context=10**6)
    with client_of(engine) as client:
        client.completions.create(model=NAME, prompt="long " * 20_000)
    assert len(engine.jobs[0].prompt) == 100_000


def test_what_is_not_built_yet_is_refused_by_name() -> None:
    fields: dict[str, Any] = {"logprobs": 1, "echo": True, "suffix": "x", "best_of": 2, "logit_bias": {"1": 1}}
    with client_of() as client:
        for field, value in fields.items():
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model=NAME, prompt="x", extra_body={field: value})
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)
