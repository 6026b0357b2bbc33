"""Every error has OpenAI's shape, and the official client reads it as the right exception."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fakes_gateway import NAME, FakeEngine, client_of, serving

from gateway.api.errors import ApiError, queue_full, unavailable
from gateway.generation import QueueFull

HI: Any = [{"role": "user", "content": "hi"}]


class BrokenEngine(FakeEngine):
    def submit(self, generations: list[Any]) -> list[Any]:
        raise RuntimeError(f"secret {hex(id(self))}")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_body_bytes=1000) as url:
        yield url


def ask(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a raw request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def error_in(body: bytes) -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "//v1/models", 404, "not_found"),
        ("GET", "/health//", 404, "not_found"),
        ("GET", "/v1/%2e%2e/health", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", 405, "method_not_allowed"),
        ("TRACE", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
    ],
)
def test_wrong_paths_and_methods_have_the_shape_of_an_error(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    found, headers, body = ask(url, method, path)
    assert (found, error_in(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    if status == 405:
        assert headers["allow"]


def test_a_wrong_method_is_told_of_all_that_are_right(url: str) -> None:
    _, headers, _ = ask(url, "PUT", "/v1/responses/x")
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


def test_a_bug_tells_the_client_an_id_and_nothing_else() -> None:
    with serving(BrokenEngine()) as url:
        status, headers, body = ask(url, "POST", "/v1/completions", b'{"prompt": "x"}', x_request_id="my-id")
    assert (status, headers["x-request-id"]) == (500, "my-id")
    assert error_in(body)["message"] == "The server failed on this request. Its id is my-id."


def test_sane_request_ids_come_back_and_others_are_replaced(url: str) -> None:
    assert ask(url, "GET", "/health", x_request_id="abc-1.2_3:4")[1]["x-request-id"] == "abc-1.2_3:4"
    for strange in ("a b", "x" * 129, "<script>", ""):
        assert ask(url, "GET", "/nowhere", x_request_id=strange)[1]["x-request-id"].startswith("req_")
    assert ask(url, "GET", "/health")[1]["x-request-id"] != ask(url, "GET", "/health")[1]["x-request-id"]


def test_the_client_sees_the_request_id_of_an_error() -> None:
    with client_of() as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="x" * 5000, messages=HI, extra_headers={"x-request-id": "mine"})
    assert caught.value.request_id == "mine"
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert len(caught.value.message) < 500


def test_a_full_queue_is_a_rate_limit_with_the_time_to_wait() -> None:
    engine = FakeEngine()
    engine.full_for_s = 2.25
    with client_of(engine) as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, stream=True)
    assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["retry-after-ms"] == "2250"


@pytest.mark.parametrize(
    ("state", "code"), [("loading", "model_loading"), ("draining", "draining"), ("lost", "worker_lost")]
)
def test_an_engine_that_takes_nothing_is_unavailable(state: Any, code: str) -> None:
    engine = FakeEngine()
    engine.state = state
    with client_of(engine) as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=NAME, prompt="x")
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (503, code, "server_error")
    assert caught.value.response.headers["retry-after"] == "3"


def test_the_client_retries_what_is_temporary() -> None:
    engine = FakeEngine()
    engine.full_for_s = 0.0
    with client_of(engine) as client, pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=2).completions.create(model=NAME, prompt="x")
    assert caught.value.request.headers["x-stainless-retry-count"] == "2"


def test_times_to_wait_stay_within_what_clients_obey() -> None:
    assert queue_full(QueueFull(1e9)).headers == {"retry-after": "120", "retry-after-ms": "120000"}
    assert queue_full(QueueFull(0)).headers == {"retry-after": "1", "retry-after-ms": "1"}
    assert unavailable("lost", -5).headers == {"retry-after": "1", "retry-after-ms": "1"}


def test_long_messages_are_cut() -> None:
    assert len(ApiError(400, "x" * 10**6).body["error"]["message"] or "") == 600


def test_bad_parameters_are_a_bad_request_to_the_client() -> None:
    with client_of() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, temperature=3)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
