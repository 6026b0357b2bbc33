"""Requests that come again with the same key: joined, repeated, refused, forgotten."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from fakes_gateway import NAME, FakeEngine, client_of, http_client, serving
from starlette.types import Message, Receive, Scope, Send

from common.config import Config
from gateway.api import idempotency
from gateway.api.idempotency import Bounds, Idempotency
from gateway.api.keys import EVERYBODY, load_keys

KEY = {"idempotency-key": "once"}
BODY = {"prompt": "x"}


def test_the_same_request_gets_the_same_answer_and_starts_nothing() -> None:
    engine = FakeEngine()
    with serving(engine) as url, http_client() as http:
        first = http.post(f"{url}/v1/completions", json=BODY, headers=KEY)
        again = http.post(f"{url}/v1/completions", json=BODY, headers=KEY | {"x-request-id": "second"})
    assert again.content == first.content
    assert len(engine.jobs) == 1
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["x-request-id"] == "second"


def test_a_stream_comes_again_as_the_same_stream() -> None:
    engine = FakeEngine()
    with client_of(engine) as client:
        texts = []
        for _ in range(2):
            stream = client.completions.create(model=NAME, prompt="x", stream=True, extra_headers=KEY)
            texts.append([(chunk.id, chunk.choices[0].text) for chunk in stream])
    assert texts[0] == texts[1]
    assert "".join(text for _, text in texts[0]) == "Hello, world!"
    assert len(engine.jobs) == 1


def test_without_a_key_every_request_is_its_own() -> None:
    engine = FakeEngine()
    with serving(engine) as url, http_client() as http:
        for headers in ({}, {}, {"idempotency-key": "a"}, {"idempotency-key": "b"}):
            http.post(f"{url}/v1/completions", json=BODY, headers=headers)
    assert len(engine.jobs) == 4


def test_a_client_that_lost_its_stream_joins_the_one_that_runs() -> None:
    engine = FakeEngine()
    engine.close_gate()
    with client_of(engine, ping_interval=0.01) as client:

        def ask() -> openai.Stream[Any]:
            return client.completions.create(model=NAME, prompt="x", stream=True, extra_headers=KEY)

        ask().close()
        joined = ask()
        engine.open_gate()
        assert "".join(chunk.choices[0].text for chunk in joined) == "Hello, world!"
    assert len(engine.jobs) == 1


def test_nobody_comes_back_for_an_abandoned_answer_and_its_jobs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "GRACE_S", 0.01)
    engine = FakeEngine()
    engine.close_gate()
    with client_of(engine, ping_interval=0.01) as client:
        client.completions.create(model=NAME, prompt="x", stream=True, extra_headers=KEY).close()
        assert engine.streams[0].aborted.wait(10)


@pytest.mark.parametrize("change", [{"prompt": "y"}, {"prompt": "x", "max_tokens": 1}])
def test_the_same_key_with_another_request_is_a_mistake(change: dict[str, Any]) -> None:
    with serving() as url, http_client() as http:
        http.post(f"{url}/v1/completions", json=BODY, headers=KEY)
        response = http.post(f"{url}/v1/completions", json=change, headers=KEY)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["x" * 256, "a b"])
def test_a_key_is_short_and_printable(key: str) -> None:
    with serving() as url, http_client() as http:
        response = http.post(f"{url}/v1/completions", json=BODY, headers={"idempotency-key": key})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_idempotency_key")


def test_mistakes_are_kept_and_what_may_end_otherwise_is_not() -> None:
    engine = FakeEngine()
    with serving(engine) as url, http_client() as http:
        wrong = [http.post(f"{url}/v1/completions", json={}, headers=KEY) for _ in range(2)]
        engine.full_for_s = 1.0
        headers = {"idempotency-key": "other"}
        assert http.post(f"{url}/v1/completions", json=BODY, headers=headers).status_code == 429
        engine.full_for_s = None
        assert http.post(f"{url}/v1/completions", json=BODY, headers=headers).status_code == 200
    assert [response.status_code for response in wrong] == [400, 400]
    assert wrong[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("path", "body"), [("completions", BODY), ("responses", {"input": "x"})])
def test_a_stream_that_failed_is_not_kept(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine()
    engine.fails = True
    with serving(engine) as url, http_client() as http:
        failed = http.post(f"{url}/v1/{path}", json={**body, "stream": True}, headers=KEY)
        engine.fails = False
        again = http.post(f"{url}/v1/{path}", json={**body, "stream": True}, headers=KEY)
    assert "A worker was lost." in failed.text
    assert "A worker was lost." not in again.text
    assert len(engine.jobs) == 2


def test_a_body_that_is_too_large_is_refused_as_ever() -> None:
    with serving(max_body_bytes=100) as url, http_client() as http:
        assert http.post(f"{url}/v1/completions", json={"prompt": "x" * 200}, headers=KEY).status_code == 413


# ---------------------------------------------------------------------------- bounds, without a server


class Answers:
    """An application that answers with as many bytes as it is told, in pieces; and its middleware."""

    def __init__(self, size: int, **bounds: Any) -> None:
        self.calls = 0
        self.now = 0.0
        self._size = size
        self.middleware = Idempotency(self._answer, 10**6, Bounds(**bounds), lambda: self.now)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self._size):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ask(self, key: str, on_send: Callable[[Message], Awaitable[None]] | None = None) -> int:
        """The number of bytes that came back."""
        size = 0
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal size
            size += len(message.get("body", b""))
            if on_send is not None:
                await on_send(message)

        headers = [(b"idempotency-key", key.encode())]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        scope |= {"server": ("x", 80), "scheme": "http", "skipjoin.account": EVERYBODY}
        await self.middleware(scope, receive, send)
        return size


def test_only_so_many_answers_are_remembered() -> None:
    async def run() -> int:
        answers = Answers(1, answers=2)
        for key in ("a", "b", "c", "a"):
            assert await answers.ask(key) == 1
        assert await answers.ask("a") == 1
        return answers.calls

    assert asyncio.run(run()) == 4


def test_only_so_many_bytes_are_remembered() -> None:
    async def run() -> int:
        answers = Answers(10, total_bytes=25)
        for key in ("a", "b", "c", "d", "a"):
            assert await answers.ask(key) == 10
        return answers.calls

    assert asyncio.run(run()) == 5


def test_an_answer_that_is_too_long_arrives_and_is_not_remembered() -> None:
    async def run() -> int:
        answers = Answers(100, answer_bytes=10)
        for _ in range(2):
            assert await answers.ask("a") == 100
        return answers.calls

    assert asyncio.run(run()) == 2


def test_who_lost_an_answer_that_is_too_long_gets_a_new_one_while_the_old_one_waits_for_nobody() -> None:
    async def run() -> tuple[int, int]:
        answers, stuck = Answers(100, answer_bytes=10), asyncio.Event()

        async def never(message: Message) -> None:
            stuck.set()
            await asyncio.Event().wait()

        first = asyncio.ensure_future(answers.ask("a", never))
        await stuck.wait()
        size = await asyncio.wait_for(answers.ask("a"), 10)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return size, answers.calls

    assert asyncio.run(run()) == (100, 2)


def test_an_old_answer_is_forgotten() -> None:
    async def run() -> list[int]:
        answers, calls = Answers(1, age_s=60), []
        for answers.now in (0.0, 60.0, 61.0):
            await answers.ask("a")
            calls.append(answers.calls)
        return calls

    assert asyncio.run(run()) == [1, 1, 2]


def test_keys_of_different_accounts_are_different_keys() -> None:
    engine = FakeEngine()
    keys = load_keys(Config(), {"SKIPJOIN_API_KEYS": "sk-a,sk-b"})
    with serving(engine, keys=keys) as url, http_client() as http:
        for key in ("sk-a", "sk-b", "sk-a"):
            http.post(f"{url}/v1/completions", json=BODY, headers=KEY | {"authorization": f"Bearer {key}"})
    assert len(engine.jobs) == 2
