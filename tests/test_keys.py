"""Keys at the door: who gets in, and what the official client sees."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes_gateway import NAME, FakeEngine, client_of, http_client, serving

from common.config import Config, ConfigError
from gateway.accounts import Limits
from gateway.api.keys import PUBLIC, KeyRing, load_keys, new_key

HI: Any = [{"role": "user", "content": "hi"}]


def ring(tmp_path: Path, **limits: int) -> tuple[str, KeyRing]:
    """A key, and the ring of the file that it is in."""
    key, table = new_key("alice", Limits(**limits))
    path = tmp_path / "keys.toml"
    path.write_text(table)
    return key, load_keys(Config(api_key_file=str(path)), {})


@contextmanager
def client_with(key: str, keys: KeyRing, engine: FakeEngine | None = None) -> Iterator[openai.OpenAI]:
    with client_of(engine, keys=keys) as client:
        yield client.with_options(api_key=key)


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model=NAME, messages=HI, **options)


def test_a_key_opens_the_door_and_another_does_not(tmp_path: Path) -> None:
    key, keys = ring(tmp_path)
    with client_with(key, keys) as client:
        assert client.models.list().data
        assert chat(client).status_code == 200
        for wrong in (key[:-1], key + "x", "none"):
            with pytest.raises(openai.AuthenticationError) as caught:
                client.with_options(api_key=wrong).models.list()
            assert caught.value.code == "invalid_api_key"
            assert caught.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic {key}", "{key}"])
def test_a_key_comes_as_a_bearer_token_or_not_at_all(tmp_path: Path, header: str | None) -> None:
    key, keys = ring(tmp_path)
    headers = {} if header is None else {"authorization": header.format(key=key)}
    with serving(keys=keys) as url, http_client() as http:
        response = http.get(f"{url}/v1/models?api_key={key}", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["x-request-id"]


def test_probes_and_descriptions_need_no_key_and_all_else_does(tmp_path: Path) -> None:
    _, keys = ring(tmp_path)
    with serving(keys=keys) as url, http_client() as http:
        for path in PUBLIC:
            assert http.get(url + path).status_code == 200, path
            assert http.get(f"{url}{path}/").status_code == 200, path
        for path in ("/", "/v1/models", "/v1/models/x", "/nowhere", "//health", "/health//x"):
            assert http.get(url + path).status_code == 401, path
        for path in ("/tokenize", "/detokenize", "/v1/completions", "/v1/chat/completions"):
            assert http.post(url + path, json={}).status_code == 401, path


def test_an_open_server_asks_nobody() -> None:
    with client_of() as client:
        answer = chat(client)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_keys_from_the_environment_have_no_limits() -> None:
    keys = load_keys(Config(), {"SKIPJOIN_API_KEYS": "sk-a, sk-b"})
    assert [getattr(keys.account_of(key), "name", None) for key in ("sk-a", "sk-b", "sk-c", "")] == [
        "key1",
        "key2",
        None,
        None,
    ]


def test_a_key_of_the_file_and_one_of_the_environment_never_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"[key2]\nsha256 = '{'0' * 64}'\n")
    config = Config(api_key_file=str(path))
    assert len(load_keys(config, {"SKIPJOIN_API_KEYS": "sk-a"}).accounts) == 2
    with pytest.raises(ConfigError, match=r"\[key2\] is the name of a key in SKIPJOIN_API_KEYS"):
        load_keys(config, {"SKIPJOIN_API_KEYS": "sk-a,sk-b"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("[alice", "keys.toml"),
        ("[alice]\n", "sha256"),
        ("[alice]\nsha256 = 'abc'\n", "sha256"),
        ("[alice]\nkey = 'sk-1'\n", "key"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nrequests_per_minute = 0\n", "requests_per_minute"),
    ],
)
def test_a_bad_key_file_is_a_mistake_with_a_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_keys(Config(api_key_file=str(path)), {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_keys(Config(api_key_file=str(tmp_path / "none")), {})


def test_neither_file_nor_ring_knows_the_key(tmp_path: Path) -> None:
    key, keys = ring(tmp_path)
    assert key not in (tmp_path / "keys.toml").read_text()
    assert key not in repr(keys)


def test_the_headers_tell_what_is_left(tmp_path: Path) -> None:
    key, keys = ring(tmp_path, requests_per_minute=6, tokens_per_minute=60)
    with client_with(key, keys, FakeEngine("Hi")) as client:
        first = chat(client).headers
        second = chat(client).headers
    assert (first["x-ratelimit-limit-requests"], first["x-ratelimit-remaining-requests"]) == ("6", "5")
    assert second["x-ratelimit-remaining-requests"] == "4"
    assert float(first["x-ratelimit-reset-requests"].removesuffix("s")) == pytest.approx(10, abs=1)
    assert (first["x-ratelimit-limit-tokens"], first["x-ratelimit-remaining-tokens"]) == ("60", "38")
    # Prompts of 20 tokens, answers of two, and up to some seconds between them.
    assert 16 <= int(second["x-ratelimit-remaining-tokens"]) <= 26


def test_a_request_too_many_is_a_rate_limit_that_says_when(tmp_path: Path) -> None:
    key, keys = ring(tmp_path, requests_per_minute=1)
    with client_with(key, keys) as client:
        chat(client)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        client.models.list()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 55 <= float(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_used_up_tokens_hold_the_next_request_back(tmp_path: Path) -> None:
    key, keys = ring(tmp_path, tokens_per_minute=20)
    with client_with(key, keys) as client:
        chat(client)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
    assert caught.value.type == "tokens"


def test_jobs_at_once_are_limited_and_end_with_their_clients(tmp_path: Path) -> None:
    key, keys = ring(tmp_path, concurrent_jobs=2)
    engine = FakeEngine()
    engine.close_gate()
    with client_with(key, keys, engine) as client:
        stream = client.chat.completions.create(model=NAME, messages=HI, n=2, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        assert caught.value.type == "jobs"
        with pytest.raises(openai.BadRequestError, match="this asks for 3 jobs at once; this key may use 2"):
            chat(client, n=3)  # which no waiting would help
        stream.close()
        assert all(job.aborted.wait(10) for job in engine.streams)
        engine.open_gate()
        assert chat(client, n=2).status_code == 200
    account = keys.account_of(key)
    assert account is not None
    assert account.num_jobs == 0


def test_no_key_is_ever_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, keys = ring(tmp_path)
    caplog.set_level(logging.DEBUG)
    with client_with(key, keys) as client:
        chat(client)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-wrong").models.list()
    served = [record.getMessage() for record in caplog.records if record.name.startswith(("gateway", "uvicorn"))]
    assert served
    assert not [line for line in served if key in line or "sk-wrong" in line]


def test_only_jobs_of_the_same_key_and_the_same_salt_share_kv() -> None:
    engine, keys = FakeEngine(), load_keys(Config(), {"SKIPJOIN_API_KEYS": "one,two"})
    with client_with("one", keys, engine) as client:
        for key, salt in (("one", None), ("one", None), ("two", None), ("one", "a"), ("two", "a"), ("one", "b")):
            chat(client.with_options(api_key=key), extra_body={"cache_salt": salt})
    salts = [job.cache_salt for job in engine.jobs]
    assert salts[0] == salts[1]
    assert len(set(salts[1:])) == 5
