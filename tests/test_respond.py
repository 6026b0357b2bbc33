"""Clients that go away: their jobs end, streamed or not, whatever moment they choose."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes_gateway import WAIT_S, FakeEngine, http_client, serving
from prometheus_client import CollectorRegistry

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "n": 2},
    "/v1/completions": {"prompt": ["a", "b"]},
}


def post(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_S)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_leaves_while_it_waits_frees_all_its_jobs(path: str, stream: bool) -> None:
    engine = FakeEngine()
    engine.close_gate()
    with serving(engine) as url:
        with post(url, path, BODIES[path] | {"stream": stream}):
            assert engine.submitted.wait(WAIT_S)
        assert len(engine.streams) == 2
        assert all(stream.aborted.wait(WAIT_S) for stream in engine.streams)


def test_a_client_that_leaves_within_its_stream_frees_its_job() -> None:
    engine = FakeEngine(lambda job: [97] * job.max_tokens, max_context=2 * 10**6)
    body = BODIES["/v1/completions"] | {"stream": True, "max_tokens": 10**6}
    with serving(engine) as url:
        with post(url, "/v1/completions", body) as connection:
            while b"data: " not in connection.recv(65536):
                pass
        assert engine.streams[0].aborted.wait(WAIT_S)


def test_leaving_after_the_end_is_no_abort() -> None:
    registry = CollectorRegistry()
    body = BODIES["/v1/completions"] | {"stream": True}
    with serving(registry=registry) as url, http_client() as http:
        assert http.post(f"{url}/v1/completions", json=body).read().endswith(b"data: [DONE]\n\n")
    ends = {
        end: registry.get_sample_value("skipjoin_http_jobs_total", {"endpoint": "completions", "end": end})
        for end in ("stop", "aborted")
    }
    assert ends == {"stop": 2.0, "aborted": None}


def test_a_storm_of_clients_that_leave_leaves_a_working_server() -> None:
    engine = FakeEngine()
    engine.close_gate()
    with serving(engine) as url:
        for path in [*BODIES] * 10:
            post(url, path, BODIES[path] | {"stream": True}).close()
        engine.open_gate()
        with http_client() as http:
            answer = http.post(f"{url}/v1/completions", json={"prompt": "x"}).json()
        assert answer["choices"][0]["text"] == "Hello, world!"
        assert all(stream.aborted.wait(WAIT_S) for stream in engine.streams)
