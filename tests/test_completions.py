"""/v1/completions through the official client."""

from collections.abc import Callable
from typing import Any

import anyio.to_thread
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
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


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


def test_what_is_not_built_is_refused_by_name() -> None:
    fields: dict[str, Any] = {"suffix": "x", "prompt_embeds": "x"}
    with client_of() as client:
        for field, value in fields.items():
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model=NAME, prompt="x", extra_body={field: value})
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


def test_logprobs_are_of_the_tokens_that_make_up_the_text() -> None:
    with client_of(FakeEngine("hé")) as client:
        answer = client.completions.create(model=NAME, prompt="x", logprobs=2)
    said = answer.choices[0].logprobs
    assert said is not None
    assert said.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert said.token_logprobs == [-104, -195, -169]
    assert said.text_offset == [0, 1, 1]
    assert said.top_logprobs is not None
    assert said.top_logprobs[0] == {"x": -0.5, "y": -1.5, "h": -104}


def test_no_logprobs_are_sent_that_nobody_asked_for() -> None:
    with client_of() as client:
        assert client.completions.create(model=NAME, prompt="x").choices[0].logprobs is None
        zero = client.completions.create(model=NAME, prompt="x", logprobs=0, max_tokens=1).choices[0].logprobs
    assert zero is not None
    assert zero.top_logprobs == [{"H": -72}]


def test_the_tokens_of_a_stop_string_are_not_among_the_logprobs() -> None:
    with client_of(FakeEngine("one STOP")) as client:
        answer = client.completions.create(model=NAME, prompt="x", logprobs=0, stop="STOP")
        kept = client.completions.create(
            model=NAME, prompt="x", logprobs=0, stop="STOP", extra_body={"include_stop_str_in_output": True}
        )
    assert [choice.text for choice in (answer.choices[0], kept.choices[0])] == ["one ", "one STOP"]
    for choice in (answer.choices[0], kept.choices[0]):
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_an_echo_is_the_prompt_before_the_text(prompt: Any) -> None:
    with client_of(FakeEngine("!?")) as client:
        plain = client.completions.create(model=NAME, prompt=[prompt, prompt], echo=True, n=2)
        stream = client.completions.create(model=NAME, prompt=prompt, echo=True, stream=True)
        streamed = [chunk.choices[0].text for chunk in stream]
    assert texts(plain) == ["ab!?"] * 4
    assert streamed == ["ab", "!", "?", ""]


def test_an_echo_has_logprobs_of_the_prompt_as_well() -> None:
    with client_of(FakeEngine("!")) as client:
        plain = client.completions.create(model=NAME, prompt="xé", echo=True, logprobs=1)
        stream = list(client.completions.create(model=NAME, prompt="xé", echo=True, logprobs=1, stream=True))
    [choice] = plain.choices
    said = choice.logprobs
    assert said is not None
    assert (choice.text, said.tokens) == ("xé!", ["x", "bytes:\\xc3", "bytes:\\xa9", "!"])
    assert said.text_offset == [0, 1, 1, 2]
    assert said.token_logprobs == [None, -195, -169, -33]
    assert said.top_logprobs is not None
    assert said.top_logprobs[0] is None
    streamed = [chunk.choices[0].logprobs for chunk in stream]
    assert [token for some in streamed if some for token in some.tokens or []] == said.tokens
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text


def test_the_best_of_several_are_the_likeliest_by_the_mean_of_their_tokens() -> None:
    said = iter([b"zz", b"a", b"bbb", b"cc"] * 2)
    with client_of(FakeEngine(lambda job: [*next(said), 256])) as client:
        answer = client.completions.create(model=NAME, prompt=["x", "y"], n=2, best_of=4)
    assert texts(answer) == ["a", "bbb", "a", "bbb"]
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 16)  # all that were made


@pytest.mark.parametrize("fields", [{"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}])
def test_the_best_cannot_be_fewer_than_asked_for_nor_known_before_the_end(fields: dict[str, Any]) -> None:
    with client_of() as client, pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="x", **fields)
    assert caught.value.param == "best_of"


def test_special_tokens_are_shown_to_those_who_want_them() -> None:
    script = [97, 256, 98]
    with client_of(FakeEngine(lambda job: script)) as client:
        create = client.completions.create
        hidden = create(model=NAME, prompt="x", max_tokens=3, extra_body={"ignore_eos": True})
        shown = create(
            model=NAME, prompt="x", max_tokens=3, extra_body={"ignore_eos": True, "skip_special_tokens": False}
        )
    assert (texts(hidden), texts(shown)) == (["ab"], ["a<|end|>b"])


def test_token_ids_come_with_the_text_when_asked_for() -> None:
    with client_of(FakeEngine("Hé")) as client:
        body: Any = {"return_token_ids": True}
        plain = client.completions.create(model=NAME, prompt="x", extra_body=body)
        stream = client.completions.create(model=NAME, prompt="x", extra_body=body, stream=True)
        chunks = [chunk.choices[0] for chunk in stream]
    assert plain.choices[0].model_extra == {"token_ids": [*"Hé".encode()], "prompt_token_ids": [120]}
    assert (chunks[0].model_extra or {})["prompt_token_ids"] == [120]
    assert not any("prompt_token_ids" in (chunk.model_extra or {}) for chunk in chunks[1:])
    assert [(chunk.text, (chunk.model_extra or {})["token_ids"]) for chunk in chunks] == [
        ("", []),
        ("H", [72]),
        ("é", [0xC3, 0xA9]),
        ("", []),
    ]


def prompt_ids(answer: Any) -> list[Any]:
    return [(choice.model_extra or {})["prompt_token_ids"] for choice in answer.choices]


def test_every_choice_has_the_tokens_of_its_own_prompt() -> None:
    body: Any = {"return_token_ids": True}
    with client_of() as client:
        create = client.completions.create
        several = create(model=NAME, prompt=["a", "bc"], n=2, extra_body=body)
        best = create(model=NAME, prompt=["a", "bc"], best_of=3, extra_body=body)
    assert prompt_ids(several) == [[97], [97], [98, 99], [98, 99]]
    assert prompt_ids(best) == [[97], [98, 99]]


@pytest.mark.parametrize("prompt", ["hello", [*b"hello"]])
def test_of_a_prompt_that_is_truncated_the_end_is_left(prompt: Any) -> None:
    body: Any = {"truncate_prompt_tokens": 3, "return_token_ids": True}
    with client_of(FakeEngine("!", max_context=5)) as client:
        answer = client.completions.create(model=NAME, prompt=prompt, echo=True, extra_body=body)
        shorter = client.completions.create(model=NAME, prompt="hi", extra_body=body)
    assert (texts(answer), prompt_ids(answer)) == (["llo!"], [[*b"llo"]])
    assert prompt_ids(shorter) == [[*b"hi"]]


def test_a_prompt_can_be_scored_without_an_answer() -> None:
    with client_of(FakeEngine("!")) as client:
        plain = client.completions.create(model=NAME, prompt="xa", echo=True, logprobs=1, max_tokens=0)
        stream = client.completions.create(model=NAME, prompt="xa", echo=True, logprobs=1, max_tokens=0, stream=True)
        chunks = [chunk.choices[0] for chunk in stream]
    [choice] = plain.choices
    assert (choice.text, choice.finish_reason) == ("xa", "length")
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens, choice.logprobs.token_logprobs) == (["x", "a"], [None, -97])
    assert plain.usage is not None
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (2, 0)
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("xa", None), ("", "length")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_echo_is_written_down_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    run_sync, in_threads = anyio.to_thread.run_sync, []

    async def spy(work: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        in_threads.append(work)
        return await run_sync(work, *args, **kwargs)

    monkeypatch.setattr(anyio.to_thread, "run_sync", spy)
    asked: Any = {"model": NAME, "echo": True, "logprobs": 2, "max_tokens": 1, "n": 2, "stream": stream}

    def said(client: openai.OpenAI, prompt: list[int]) -> list[list[tuple[str, float | None]]]:
        """Tokens and their logprobs, of each choice."""
        answer = client.completions.create(prompt=prompt, **asked)
        told: list[list[tuple[str, float | None]]] = [[], []]
        for choice in [choice for part in (answer if stream else [answer]) for choice in part.choices]:
            if choice.logprobs is not None:
                told[choice.index] += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
        return told

    with client_of(FakeEngine("y")) as client:
        said(client, [120] * 20)
        before = len(in_threads)
        assert said(client, [120] * 200) == [[("x", None), *[("x", -120)] * 199, ("y", -121)]] * 2
        assert len(in_threads) - before >= 3  # one for each choice, and for the answer


def test_more_logprobs_of_prompts_than_memory_should_hold_are_refused() -> None:
    with client_of(FakeEngine(max_context=10_000)) as client:
        many: Any = {"model": NAME, "prompt": [[120] * 5000] * 2, "echo": True, "max_tokens": 1}
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**many, logprobs=5, n=10)
        assert caught.value.param == "logprobs"
        assert "these are 600000 log probabilities of prompts; at most 500000 are allowed" in str(caught.value)
        client.completions.create(**many, n=10)


def test_no_answer_and_no_echo_are_nothing() -> None:
    with client_of() as client, pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="x", max_tokens=0)
    assert caught.value.param == "max_tokens"
