"""Request bodies: what is taken, what is refused, and in which words."""

import json
from typing import Any

import msgspec
import pytest

from gateway.api.answers import PromptDetails, Usage
from gateway.api.dialect import Chat, Letterhead
from gateway.api.errors import ApiError
from gateway.api.schema import (
    MAX_STOP_CHARACTERS,
    REFUSED,
    ChatRequest,
    CompletionRequest,
    decode_chat,
    decode_completion,
)
from gateway.text.output.parts import Content

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> ChatRequest:
    return decode_chat(json.dumps({"messages": [USER]} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps({"prompt": "hi"} | fields).encode())


def refusal(body: bytes) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        decode_chat(body)
    assert caught.value.status == 400
    error = caught.value.body["error"]
    assert error["type"] == "invalid_request_error"
    return error


def refused(**fields: Any) -> dict[str, Any]:
    return refusal(json.dumps({"messages": [USER]} | fields).encode())


def test_every_parameter_may_be_null() -> None:
    fields = set(ChatRequest.__struct_fields__) - {"messages"}
    assert chat(**dict.fromkeys(fields)) == chat()


def test_what_nobody_knows_and_what_contracts_say_to_ignore_is_ignored() -> None:
    ignored = {"store": True, "metadata": {"a": "b"}, "user": "me", "service_tier": "flex", "verbosity": "low"}
    ignored |= {"prediction": {}, "made_up": [1]}
    assert chat(**ignored) == chat()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [0, 2, 1.5]),
        ("top_p", [1, 1e-9]),
        ("top_k", [-1, 0, 40]),
        ("min_p", [0, 1]),
        ("n", [1, 128]),
        ("seed", [-(2**63), 2**63 - 1, 0]),
        ("max_tokens", [1, 10**6]),
        ("max_completion_tokens", [1]),
        ("min_tokens", [0, 5]),
        ("presence_penalty", [-2, 2]),
        ("frequency_penalty", [-2.0, 2.0]),
        ("repetition_penalty", [1e-3, 10]),
    ],
)
def test_numbers_within_their_range_are_taken(field: str, values: list[float]) -> None:
    for value in values:
        assert getattr(chat(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, 2.1, "1", True, [1]]),
        ("top_p", [0, -1, 1.1]),
        ("top_k", [-2, 1.5, True, 2**40]),
        ("min_p", [-0.1, 1.1]),
        ("n", [0, -1, 10**9, 1.5, True, "1", 129]),
        ("seed", [2**63, -(2**63) - 1, 2**200, 1.0, True]),
        ("max_tokens", [0, -1, 2**63, 1.0, True, "5"]),
        ("max_completion_tokens", [0, False]),
        ("min_tokens", [-1, 2**63]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [2.5, "a"]),
        ("repetition_penalty", [0, -1, 1e-9, 11]),
        ("logprobs", [0, 1, "true"]),
        ("top_logprobs", [-1, 21, 1.5]),
        ("logit_bias", [{"1": 101}, {"1": -101}, {"a": 1}, {"1.5": 1}, {"1": "a"}, [1]]),
        ("stop_token_ids", [["a"], [1.5], 5]),
        ("bad_words", ["a", [1]]),
        ("allowed_token_ids", [["a"], 5]),
        ("stream", [1, "true"]),
        ("stop", [1, [1]]),
        ("model", [1, ["a"]]),
        ("stream_options", ["a", 1]),
        ("messages", [[], "hi", None, {}]),
    ],
)
def test_other_values_are_refused_by_the_fields_name(field: str, values: list[Any]) -> None:
    for value in values:
        error = refused(**{field: value})
        assert error["code"] == "invalid_value", (field, value)
        assert error["param"].startswith(field), (field, value)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"messages": [{"role": "user"}]} x', "invalid_json"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "invalid_json"),
        (b'{"ignored": "\xff"}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        ("{}".encode("utf-16"), "invalid_json"),
        (b"[" * 100_000, "invalid_value"),
        (b'{"ignored": ' + b"[" * 100_000, "invalid_json"),
        (b'{"guided_json": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "invalid_json"),
        (b'{"a": {"b": ' * 50_000, "invalid_json"),
        (b'{"temperature": 1e999}', "invalid_value"),
        (b'{"temperature": ' + b"9" * 5000 + b"}", "invalid_value"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_value"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b"{}", "invalid_value"),
    ],
)
def test_hostile_bodies_are_the_clients_mistake(body: bytes, code: str) -> None:
    assert refusal(body)["code"] == code


def test_a_missing_field_is_named() -> None:
    assert refusal(b"{}")["param"] == "messages"
    assert refusal(b'{"messages": [{}]}')["param"] == "messages[0]"


def test_what_a_client_sent_is_not_quoted_back_at_length() -> None:
    assert len(refused(messages=[{"role": "x" * 1_000_000, "content": ""}])["message"]) < 1000


@pytest.mark.parametrize("stop", ["x", ["x"], [], ["a", "b", "c", "d"], None])
def test_stop_strings_come_in_every_form(stop: Any) -> None:
    assert len(chat(stop=stop).stop_strings()) == len(stop or [])


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], ["a"] * 5, ["a"] * 1000, "x" * (MAX_STOP_CHARACTERS + 1)])
def test_stop_strings_that_make_no_sense_are_refused(stop: Any) -> None:
    with pytest.raises(ApiError) as caught:
        chat(stop=stop).stop_strings()
    assert caught.value.body["error"]["param"] == "stop"


def test_every_refused_field_is_a_field_of_a_request() -> None:
    assert set(REFUSED) <= set(ChatRequest.__struct_fields__) | set(CompletionRequest.__struct_fields__)


def test_refused_fields_are_refused_by_name_and_harmless_values_are_not() -> None:
    for field, harmless in REFUSED.items():
        ask = chat if field in ChatRequest.__struct_fields__ else completion
        for value in harmless:
            ask(**{field: value})
        with pytest.raises(ApiError) as caught:
            ask(**{field: {"something": 1}})
        assert caught.value.body["error"]["code"] == "unsupported_parameter"
        assert caught.value.body["error"]["param"] == field


def test_zero_logprobs_ask_for_something() -> None:
    assert completion(logprobs=0).num_logprobs == 0
    assert completion().num_logprobs is None
    assert [chat(logprobs=asked).num_logprobs for asked in (None, False, True)] == [None, None, 0]
    assert chat(logprobs=True, top_logprobs=3).num_logprobs == 3


@pytest.mark.parametrize("prompt", ["a", "", ["a", "b"], [1, 2], [[1], [2, 3]], []])
def test_prompts_come_in_every_form(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 1, [1.5], [True], [[True]], [[1.0]], [["a"]], [[[1]]], {}])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError):
        completion(prompt=prompt)


def test_a_chunk_has_a_null_usage_only_where_usage_was_asked_for() -> None:
    letterhead = Letterhead("id", "chunk", 1, "model", "fp")
    chunk = Chat().part(0, Content("x"))
    assert "usage" not in msgspec.json.decode(letterhead.write([chunk]))
    assert msgspec.json.decode(letterhead.write([chunk], usage=None))["usage"] is None
    assert (
        msgspec.json.decode(letterhead.write([], usage=Usage(1, 2, 3, PromptDetails(0))))["usage"]["total_tokens"] == 3
    )
