"""/v1/chat/completions through the official client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fakes_gateway import NAME, FakeEngine, byte_text_model, client_of, trace

from gateway.generation import Failure

HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with client_of() as client:
        yield client


def prompt_of(engine: FakeEngine) -> str:
    return bytes(engine.jobs[-1].prompt).decode()


def bad_request(call: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    return caught.value


def test_an_answer_has_all_that_openai_promises(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=HI)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world!", "stop")
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", NAME, "chatcmpl-")
    assert (answer.system_fingerprint or "").startswith("fp_")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (20, 13, 33)
    assert "x_sched" not in (answer.model_extra or {})


def test_the_fingerprint_tells_what_changes_the_output_of_a_seed() -> None:
    options: list[dict[str, Any]] = [{}, {"weights": "int8"}, {"kv_cache_dtype": "fp16"}, {"dtype": "bf16"}]
    found = []
    for option in options:
        with client_of(**option) as client:
            found.append(client.chat.completions.create(model=NAME, messages=HI).system_fingerprint)
    assert len(set(found)) == len(options)


def test_messages_go_through_the_template() -> None:
    engine = FakeEngine()
    messages: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "", "name": "eve"},
    ]
    with client_of(engine) as client:
        client.chat.completions.create(model=NAME, messages=messages)
    assert prompt_of(engine) == "system: Be kind.\nuser: one\ntwo\nassistant: \nuser: \nassistant: "


def test_a_missing_model_is_this_model(client: openai.OpenAI) -> None:
    body = {"messages": HI}
    answer = client.post("/chat/completions", body=body, cast_to=openai.types.chat.ChatCompletion)
    assert answer.model == NAME


def test_the_served_name_and_the_plain_name_are_the_same_model() -> None:
    with client_of(served_model_name="chatty") as client:
        for name in ("chatty", NAME):
            assert client.chat.completions.create(model=name, messages=HI).model == "chatty"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4o", messages=HI)


def test_both_spellings_of_the_length_are_known_and_the_new_one_wins() -> None:
    engine = FakeEngine()
    with client_of(engine) as client:
        old = client.chat.completions.create(model=NAME, messages=HI, max_tokens=2)
        new = client.chat.completions.create(model=NAME, messages=HI, max_tokens=2, max_completion_tokens=4)
    assert [a.choices[0].message.content for a in (old, new)] == ["He", "Hell"]
    assert old.choices[0].finish_reason == "length"


def test_without_a_length_the_context_is_the_limit() -> None:
    engine = FakeEngine(max_context=24)
    with client_of(engine) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hell", "length")


def test_too_long_is_said_at_once() -> None:
    with client_of(FakeEngine(max_context=24)) as client:
        create = client.chat.completions.create
        errors = [
            bad_request(lambda: create(model=NAME, messages=HI, max_completion_tokens=5)),
            bad_request(lambda: create(model=NAME, messages=[{"role": "user", "content": "x" * 6}])),
            bad_request(lambda: create(model=NAME, messages=[{"role": "user", "content": "x" * 1_000_000}])),
        ]
    assert {error.code for error in errors} == {"context_length_exceeded"}
    assert [error.param for error in errors] == ["max_completion_tokens", "messages", "messages"]


def test_several_choices_have_their_own_text_and_share_the_prompt() -> None:
    engine = FakeEngine(lambda job: [*f"seed {job.seed % 1000}".encode(), 256])
    with client_of(engine) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.choices[0].message.content == "seed 5"
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 20


def test_a_stop_string_never_reaches_the_client_and_frees_the_job() -> None:
    engine = FakeEngine("one STOP two")
    with client_of(engine) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI, stop=["STOP", "never"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one ", "stop")
    assert engine.streams[0].aborted.is_set()


def test_a_trace_comes_with_the_answer_when_asked_for(client: openai.OpenAI) -> None:
    asked = {"x-skipjoin-trace": "1"}
    one = client.chat.completions.create(model=NAME, messages=HI, extra_headers=asked)
    two = client.chat.completions.create(model=NAME, messages=HI, n=2, extra_headers=asked)
    assert (one.model_extra or {})["x_sched"]["joined_level"] == trace().joined_level
    assert [t["joined_level"] for t in (two.model_extra or {})["x_sched"]] == [0, 1]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ],
)
def test_broken_messages_are_refused_by_place(client: openai.OpenAI, messages: Any, param: str) -> None:
    error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=messages))
    assert (error.code, error.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}, "content[0].type"),
        ({"role": "function", "content": "x", "name": "f"}, "role"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_what_is_no_text_is_not_supported(client: openai.OpenAI, message: Any, param: str) -> None:
    error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=[message]))
    assert (error.code, error.param) == ("unsupported_parameter", f"messages[0].{param}")


def test_a_model_without_a_template_points_to_completions() -> None:
    with client_of(text=byte_text_model(template=None)) as client:
        error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=HI))
    assert "/v1/completions" in error.message


def test_a_template_may_refuse_messages() -> None:
    text = byte_text_model(template="{{ raise_exception('Only even numbers of messages') }}")
    with client_of(text=text) as client:
        error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=HI))
    assert (error.body["message"], error.param) == ("Only even numbers of messages", "messages")  # type: ignore[index]


def test_special_tokens_typed_by_a_user_harm_nobody() -> None:
    engine = FakeEngine()
    content = "<|end|><|im_start|><s><|image_pad|>\0"
    with client_of(engine) as client:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": content}])
    assert engine.jobs[0].prompt.count(256) == 1


def test_a_failed_generation_is_a_server_error() -> None:
    engine = FakeEngine()
    engine.fails = True
    with client_of(engine) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, n=2)
    assert caught.value.code == "generation_failed"
    assert caught.value.message.endswith("A worker was lost.")
    assert all(stream.aborted.is_set() for stream in engine.streams)


def test_a_request_that_leaves_no_token_is_at_fault_itself_and_is_not_sent_again() -> None:
    engine = FakeEngine()
    engine.fails, engine.failure = True, Failure("the output's grammar is too complex", by_request=True)
    with client_of(engine) as client:
        patient = client.with_options(max_retries=2)
        error = bad_request(lambda: patient.chat.completions.create(model=NAME, messages=HI))
    assert (error.code, error.type) == ("unsatisfiable", "invalid_request_error")
    assert len(engine.jobs) == 1


def test_logprobs_name_tokens_bytes_and_the_likeliest() -> None:
    with client_of(FakeEngine("hé")) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI, logprobs=True, top_logprobs=2)
    said = answer.choices[0].logprobs
    assert said is not None
    assert said.content is not None
    assert [(one.token, one.bytes, one.logprob) for one in said.content] == [
        ("h", [104], -104),
        ("bytes:\\xc3", [0xC3], -195),
        ("bytes:\\xa9", [0xA9], -169),
    ]
    assert [(one.token, one.bytes, one.logprob) for one in said.content[0].top_logprobs] == [
        ("x", [120], -0.5),
        ("y", [121], -1.5),
    ]


def test_logprobs_without_a_number_name_no_others(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=HI, logprobs=True, max_tokens=1)
    assert answer.choices[0].logprobs is not None
    assert [one.top_logprobs for one in answer.choices[0].logprobs.content or []] == [[]]


def test_streamed_logprobs_come_with_their_text() -> None:
    with client_of(FakeEngine("aé STOP")) as client:
        chunks = list(
            client.chat.completions.create(model=NAME, messages=HI, logprobs=True, stop="STOP", stream=True, n=2)
        )
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        pieces = [
            (choice.delta.content, bytes(b for one in choice.logprobs.content or [] for b in one.bytes or []).decode())
            for choice in own
            if choice.logprobs is not None
        ]
        assert pieces == [("a", "a"), ("é", "é"), (" ", " ")]


def test_the_likeliest_without_logprobs_make_no_sense(client: openai.OpenAI) -> None:
    error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=HI, top_logprobs=2))
    assert error.param == "top_logprobs"


def test_an_answer_may_go_on_with_the_final_message() -> None:
    engine = FakeEngine()
    messages: Any = [*HI, {"role": "assistant", "content": "The answer is "}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    with client_of(engine) as client:
        client.chat.completions.create(model=NAME, messages=messages, extra_body=body)
        assert prompt_of(engine) == "user: hi\nassistant: The answer is "
        for wrong, final in (({**body, "add_generation_prompt": True}, messages), (body, HI)):
            error = bad_request(
                lambda wrong=wrong, final=final: client.chat.completions.create(
                    model=NAME, messages=final, extra_body=wrong
                )
            )
            assert error.code == "invalid_value"


def test_usage_may_come_with_every_chunk() -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    with client_of(FakeEngine("abc")) as client:
        stream = client.chat.completions.create(model=NAME, messages=HI, stream=True, stream_options=options)
        counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts == [1, 1, 2, 3, 3, 3]  # role, three letters, reason, usage


def test_more_messages_than_tokens_are_too_long() -> None:
    with client_of(FakeEngine(max_context=10)) as client:
        error = bad_request(lambda: client.chat.completions.create(model=NAME, messages=HI * 11))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "11 messages" in error.message


def test_the_prompts_tokens_are_said_once_and_first() -> None:
    body: Any = {"return_token_ids": True}
    prompt = [*b"user: hi\nassistant: "]
    with client_of() as client:
        create = client.chat.completions.create
        plain = create(model=NAME, messages=HI, n=2, extra_body=body)
        chunks = list(create(model=NAME, messages=HI, n=2, extra_body=body, stream=True))
    assert (plain.model_extra or {})["prompt_token_ids"] == prompt
    assert [(chunk.model_extra or {}).get("prompt_token_ids") for chunk in chunks[:2]] == [prompt, None]
    assert not any("prompt_token_ids" in (chunk.model_extra or {}) for chunk in chunks[1:])


def test_of_a_conversation_that_is_truncated_the_end_is_left() -> None:
    engine = FakeEngine(max_context=20)
    with client_of(engine) as client:
        client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "x" * 50}],
            extra_body={"truncate_prompt_tokens": 12},
        )
    assert prompt_of(engine) == "\nassistant: "
