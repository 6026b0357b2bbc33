"""Connections: headers without end, headers that drip, silence, nonsense; certificates and browsers."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fakes_gateway import WAIT_S, FakeEngine, http_client, serving

from common.config import Config, ConfigError
from gateway import http_server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_S)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def exchange(url: str, data: bytes) -> bytes:
    with connect(url) as connection:
        send(connection, data)
        return answer(connection)


def stream_request(max_tokens: int = 10**6 - 10) -> bytes:
    body = json.dumps({"prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def refusal(raw: bytes) -> tuple[int, Any, dict[str, str]]:
    """Status, error and headers of the only response in `raw`."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status.split()[1]), json.loads(body)["error"], headers


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\na: " + b"b" * 10**7,
        b"GET /health HTTP/1.1\r\nHost: x\r\na: " + b"b" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 10**6,
        b"GET /health HTTP/1.1\r\n" + b"x" * 10**6,
    ],
)
def test_headers_without_end_are_refused(url: str, data: bytes) -> None:
    raw = exchange(url, data)
    if raw:  # a client that goes on sending may get only a reset
        status, error, headers = refusal(raw)
        assert (status, error["code"]) in [(431, "headers_too_large"), (400, "invalid_http")]
        assert headers["x-request-id"].startswith("req_")
        assert headers["connection"] == "close"
    with http_client() as http:
        assert http.get(f"{url}/health").status_code == 200


def test_a_few_large_headers_are_fine(url: str) -> None:
    with http_client() as http:
        assert http.get(f"{url}/health", headers={"x": "y" * 20_000}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbad header: y\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n"[:-1] + b"\x00",
    ],
)
def test_what_is_not_http_is_told_so_in_the_shape_of_all_errors(url: str, data: bytes) -> None:
    status, error, headers = refusal(exchange(url, data))
    assert (status, error["code"], error["type"]) == (400, "invalid_http", "invalid_request_error")
    assert headers["x-request-id"].startswith("req_")


def test_a_chunk_that_is_no_chunk_ends_the_connection(url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _, _ = refusal(exchange(url, head + b"zz\r\n{}\r\n"))
    assert status == 400


def test_headers_that_drip_meet_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.05)
    with serving() as url:
        status, error, _ = refusal(exchange(url, b"GET /health HTTP/1.1\r\nHost: "))
        assert (status, error["code"]) == (408, "request_timeout")
        assert exchange(url, b"") == b""  # who says nothing at all is not answered


def test_a_second_request_on_a_connection_has_a_deadline_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.05)
    with serving() as url:
        raw = exchange(url, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: ")
    first, _, second = raw.partition(b'{"status":"alive"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert refusal(second)[0] == 408


def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    with connect(url) as connection:
        last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + last)
        raw = answer(connection)
    assert raw.count(b"HTTP/1.1 200 ") == 4
    assert raw.rindex(b'{"status":"alive"}') < raw.index(b'{"version":')


def test_an_answer_that_did_not_wait_for_the_body_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LINGER_S", 0.05)
    with serving(max_body_bytes=100) as url:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        status, error, _ = refusal(exchange(url, head + b"{"))
    assert (status, error["code"]) == (413, "request_too_large")


def test_a_body_may_wait_to_be_asked_for(url: str) -> None:
    head = (
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with connect(url) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"prompt":"a"}')
        assert b"200 OK" in answer(connection)


def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SEND_TIMEOUT_S", 0.05)
    engine = FakeEngine(max_context=10**6)
    with serving(engine) as url, connect(url) as connection:
        connection.sendall(stream_request())
        assert engine.submitted.wait(WAIT_S)
        assert engine.streams[0].aborted.wait(WAIT_S)


def test_a_client_that_pauses_and_reads_on_gets_all() -> None:
    tokens = 30_000  # events of some 6 MB: more than the sockets hold
    engine = FakeEngine(lambda job: list(b"x" * job.max_tokens), max_context=10**6)
    with serving(engine) as url, connect(url) as connection:
        connection.sendall(stream_request(max_tokens=tokens))
        assert engine.submitted.wait(WAIT_S)
        assert not engine.streams[0].aborted.wait(0.1)
        raw = answer(connection)
    assert raw.count(b'"text":"x"') == tokens
    assert b"[DONE]" in raw[-100:]


def test_a_client_may_read_as_late_as_it_likes_while_little_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SEND_TIMEOUT_S", 0.0)
    engine = FakeEngine()
    with serving(engine) as url, connect(url) as connection:
        connection.sendall(stream_request(max_tokens=3))
        assert engine.submitted.wait(WAIT_S)
        assert engine.streams[0].aborted.wait(WAIT_S)  # as all jobs are in the end
        assert b"[DONE]" in answer(connection)


def test_the_server_does_not_say_what_it_is_made_of(url: str) -> None:
    with http_client() as http:
        assert "server" not in http.get(f"{url}/health").headers


# ---------------------------------------------------------------------------- browsers


def test_pages_of_allowed_origins_may_ask_and_read() -> None:
    with serving(cors_origins=("https://chat.example",)) as url, http_client() as http:
        origin = {"origin": "https://chat.example"}
        ask = origin | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        preflight = http.options(f"{url}/v1/completions", headers=ask)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        answer = http.post(f"{url}/v1/completions", json={}, headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (400, "https://chat.example")
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = http.get(f"{url}/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_without_the_option_no_page_may(url: str) -> None:
    with http_client() as http:
        answer = http.get(f"{url}/v1/models", headers={"origin": "https://chat.example"})
    assert "access-control-allow-origin" not in answer.headers


# ---------------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate and key for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, *subject]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_with_a_certificate_the_server_speaks_https(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    with serving(ssl_certfile=cert, ssl_keyfile=key) as url, httpx2.Client(verify=trust) as http:
        assert url.startswith("https://")
        body = {"prompt": "x", "stream": True}
        assert http.post(f"{url}/v1/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_a_certificate_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cert"):
        http_server.http_server(Config(ssl_certfile=str(tmp_path / "cert.pem")), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Config(ssl_keyfile="key.pem")
