"""Tokens of text and text of tokens, over HTTP."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fakes_gateway import NAME, FakeEngine, http_client, serving

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeEngine(max_context=50)) as url:
        yield url


def post(url: str, body: dict[str, Any]) -> httpx2.Response:
    with http_client() as http:
        return http.post(url, json=body)


def test_a_prompt_becomes_tokens_and_tokens_become_the_prompt(url: str) -> None:
    text = "é<|end|>!"
    answer = post(f"{url}/tokenize", {"model": NAME, "prompt": text}).json()
    assert answer == {"count": 4, "max_model_len": 50, "tokens": [195, 169, 256, 33], "token_strs": None}
    assert post(f"{url}/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_tokens_come_with_their_strings_when_asked_for(url: str) -> None:
    answer = post(f"{url}/tokenize", {"prompt": "a<|end|>", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "<|end|>"]


def test_messages_have_the_tokens_of_their_chat_completion(url: str) -> None:
    tokenized = post(f"{url}/tokenize", {"messages": HI}).json()
    completed = post(f"{url}/v1/chat/completions", {"messages": HI, "max_tokens": 1}).json()
    assert tokenized["count"] == completed["usage"]["prompt_tokens"]
    assert bytes(tokenized["tokens"]) == b"user: hi\nassistant: "


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x" * 1000}, "prompt"),
        ("/tokenize", {"prompt": "x" * 51}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 1000}]}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [97] * (16 * 50 + 1)}, "tokens"),
        ("/detokenize", {"tokens": [2**64]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_what_cannot_be_done_is_a_bad_request(url: str, path: str, body: dict[str, Any], param: str) -> None:
    response = post(url + path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_another_model_is_not_found(url: str, path: str) -> None:
    assert post(url + path, {"model": "other", "prompt": "x", "tokens": [1]}).status_code == 404


def test_no_tokens_are_no_text(url: str) -> None:
    assert post(f"{url}/tokenize", {"prompt": ""}).json()["tokens"] == []
    assert post(f"{url}/detokenize", {"tokens": []}).json() == {"prompt": ""}
