"""Bodies: too large, declared or not; compressed; not JSON by name; cut short."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes_gateway import serving
from test_errors import ask, error_in

PATH = "/v1/completions"
LIMIT = 1000


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_body_bytes=LIMIT) as url:
        yield url


def padded(size: int) -> bytes:
    """A request of exactly `size` bytes."""
    body = json.dumps({"prompt": "x", "max_tokens": 1, "ignored": ""}).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(url: str) -> None:
    assert ask(url, "POST", PATH, padded(LIMIT))[0] == 200
    status, _, body = ask(url, "POST", PATH, padded(LIMIT + 1))
    assert (status, error_in(body)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (200_000, 413)])
def test_a_body_of_undeclared_length_has_the_same_limit(url: str, size: int, status: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    data = padded(size)
    pieces = iter([data[i : i + 500] for i in range(0, size, 500)])
    connection.request("POST", PATH, pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"content_encoding": "gzip"},
        {"content_encoding": "deflate, identity"},
        {"content_type": "text/plain"},
        {"content_type": "multipart/form-data; boundary=x"},
    ],
)
def test_other_media_types_and_compression_are_refused(url: str, headers: dict[str, Any]) -> None:
    status, _, body = ask(url, "POST", PATH, padded(100), **headers)
    assert (status, error_in(body)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers", [{}, {"content_type": "Application/JSON; charset=utf-8", "content_encoding": "Identity"}]
)
def test_json_by_any_spelling_is_taken(url: str, headers: dict[str, Any]) -> None:
    assert ask(url, "POST", PATH, padded(100), **headers)[0] == 200


def test_a_client_that_leaves_within_its_body_harms_nobody(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    assert ask(url, "POST", PATH, padded(100))[0] == 200
