"""Streams: their grammar byte by byte, and what the official client makes of them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from fakes_gateway import NAME, FakeEngine, client_of, http_client, serving

from gateway.generation import Failure

HI: Any = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"
CHAT = {"messages": HI, "stream": True}
USAGE = {"stream_options": {"include_usage": True}}


@contextmanager
def stream(engine: FakeEngine, body: dict[str, Any], path: str = PATH, **options: Any) -> Iterator[httpx2.Response]:
    headers = {"x-skipjoin-trace": "1"} if body.get("trace") else {}
    with (
        serving(engine, **options) as url,
        http_client() as http,
        http.stream("POST", url + path, json=body, headers=headers) as response,
    ):
        yield response


def events(engine: FakeEngine, body: dict[str, Any], path: str = PATH) -> list[Any]:
    """The data of all events, decoded; checks that nothing else was sent, and that [DONE] came last."""
    with stream(engine, body, path) as response:
        text = "".join(response.iter_text())
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks[:-2])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_the_headers_keep_proxies_from_buffering() -> None:
    with stream(FakeEngine(), CHAT) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        assert response.headers["x-request-id"]


def test_a_chat_stream_is_role_then_content_then_reason() -> None:
    chunks = events(FakeEngine("Hi"), CHAT)
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
        for delta, reason in [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "H"}, None),
            ({"content": "i"}, None),
            ({}, "stop"),
        ]
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_a_completion_stream_has_no_roles() -> None:
    body = {"prompt": "x", "stream": True, "max_tokens": 1}
    chunks = events(FakeEngine("Hi"), body, "/v1/completions")
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["H", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_roles_come_before_any_content(n: int) -> None:
    chunks = events(FakeEngine("Hi"), CHAT | {"n": n})
    opening = [chunk["choices"][0] for chunk in chunks[:n]]
    assert [choice["index"] for choice in opening] == list(range(n))
    assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in opening)
    rest = [chunk["choices"][0] for chunk in chunks[n:]]
    assert not any("role" in choice["delta"] for choice in rest)
    for index in range(n):
        own = [choice for choice in rest if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hi"
        assert [choice["finish_reason"] for choice in own] == [None, None, "stop"]


def test_usage_comes_alone_and_last_and_is_null_before() -> None:
    *chunks, last = events(FakeEngine("Hi"), CHAT | USAGE | {"n": 2})
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "total_tokens": 24,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_trace_is_on_the_usage_chunk_or_else_on_the_last() -> None:
    *chunks, last = events(FakeEngine("Hi"), CHAT | USAGE | {"trace": True})
    assert last["x_sched"]["joined_level"] == 0
    assert not any("x_sched" in chunk for chunk in chunks)
    *chunks, last = events(FakeEngine("Hi"), CHAT | {"trace": True, "n": 2})
    assert [trace["joined_level"] for trace in last["x_sched"]] == [0, 1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert not any("x_sched" in chunk for chunk in chunks)


def test_characters_come_whole() -> None:
    chunks = events(FakeEngine("é😀漢"), CHAT)
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "é", "😀", "漢", None]


def test_a_stop_string_is_held_back_and_cut() -> None:
    engine = FakeEngine("a ST b STOP never")
    chunks = events(engine, CHAT | {"stop": "STOP"})
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "a ST b "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert engine.streams[0].aborted.is_set()


def test_comments_keep_a_silent_stream_alive_from_its_admission_on() -> None:
    engine = FakeEngine("Hi")
    engine.close_gate()
    with stream(engine, CHAT, ping_interval=0.02) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": ping", "", ": ping", ""]
        engine.open_gate()
        rest = [line for line in lines if line and not line.startswith(":")]
    assert rest[-1] == "data: [DONE]"
    assert not any(line.startswith(("id:", "retry:", "event:")) for line in rest)


def test_the_client_reads_over_comments() -> None:
    engine = FakeEngine("Hi")
    engine.close_gate()
    opening = threading.Timer(0.1, engine.open_gate)
    with client_of(engine, ping_interval=0.01) as client:
        chunks = client.chat.completions.create(model=NAME, messages=HI, stream=True)
        opening.start()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi"
    opening.join()


def test_the_clients_stream_helper_accumulates_choices() -> None:
    with client_of() as client, client.chat.completions.stream(model=NAME, messages=HI, n=3) as helper:
        final = helper.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["Hello, world!"] * 3
    assert [choice.message.role for choice in final.choices] == ["assistant"] * 3


def test_the_clients_stream_helper_keeps_the_usage() -> None:
    with client_of() as client:
        options: Any = {"include_usage": True}
        with client.chat.completions.stream(model=NAME, messages=HI, stream_options=options) as helper:
            final = helper.get_final_completion()
    assert final.usage is not None
    assert final.usage.total_tokens == 33


def test_many_streams_of_one_asynchronous_client_at_once() -> None:
    async def read(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                chunks = await client.completions.create(model=NAME, prompt=f"{number}", stream=True)
                return "".join([chunk.choices[0].text async for chunk in chunks])

            return await asyncio.gather(*map(one, range(20)))

    with serving(FakeEngine(lambda job: [*job.prompt, 33, 256])) as url:
        assert asyncio.run(read(url)) == [f"{i}!" for i in range(20)]


def test_an_error_within_a_stream_reaches_the_client_and_ends_it() -> None:
    engine = FakeEngine("Hi there")
    engine.fails = True
    with client_of(engine) as client, pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(model=NAME, messages=HI, stream=True, n=2):
            pass
    assert (caught.value.message, caught.value.code, caught.value.type) == (
        "A worker was lost.",
        "generation_failed",
        "server_error",
    )
    *_, last = events(engine, CHAT)
    assert set(last) == {"error"}
    assert all(stream.aborted.is_set() for stream in engine.streams)


def test_within_a_stream_the_client_learns_whose_fault_it_is() -> None:
    engine = FakeEngine("Hi there")
    engine.fails, engine.failure = True, Failure("too complex", by_request=True)
    *_, last = events(engine, CHAT)
    assert last["error"] | {"param": None} == {
        "message": "too complex",
        "type": "invalid_request_error",
        "param": None,
        "code": "unsatisfiable",
    }


def test_errors_before_the_first_byte_are_plain_errors() -> None:
    with client_of() as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=NAME, messages=HI, stream=True, max_tokens=0)
