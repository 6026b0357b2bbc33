"""A real server and people who wish it no good: always a 4xx in the shape of an error, never a 5xx, never a stall.

The inputs are those that broke other servers. Beside them somebody reads streams all the time; afterwards the counters
are back at zero.
"""

import contextlib
import json
import os
import re
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from test_errors import error_in
from test_http_server import answer, send
from test_mpi import Server, running, skipjoin
from tiny_model import write_tiny_model

from gateway.api.responses.records import ResponsesRequest
from gateway.api.schema import ChatRequest, CompletionRequest

pytestmark = pytest.mark.mpi

CONTEXT = 1024  # of the tiny model
VOCABULARY = 259
LONGEST_GAP_S = 3.0  # between two tokens of a healthy stream, on a machine that has other things to do

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
HI = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of it: at the end nothing may be left of anything."""
    folder = tmp_path_factory.mktemp("hostile")
    command = skipjoin(str(write_tiny_model(folder / "model")), "--threads", "1", "--ping-interval", "0.2")
    with running(command, folder / "log") as server, Bystander(server) as bystander:
        yield server
        bystander.stop()
        assert bystander.num_tokens > 100
        assert bystander.longest_gap_s < LONGEST_GAP_S
        until_idle(server)
        log = (folder / "log").read_text()
        assert "Traceback" not in log
        assert " 500 " not in log


class Bystander:
    """Reads streams, one after the other, and notes how long it had to wait for anything."""

    def __init__(self, server: Server) -> None:
        self.num_tokens = 0
        self.longest_gap_s = 0.0
        self._url = server.url
        self._stopped = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(60)
        assert not self._failures, self._failures

    def _read(self) -> None:
        body = {"prompt": "once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
        try:
            with httpx.Client(trust_env=False, timeout=60) as client:
                while not self._stopped.is_set():
                    with client.stream("POST", f"{self._url}/completions", json=body) as response:
                        self._note(response)
        except BaseException as failure:
            self._failures.append(failure)

    def _note(self, response: httpx.Response) -> None:
        last = time.monotonic()
        for line in response.iter_lines():
            if line.startswith("data: "):
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last)
                last = time.monotonic()
                self.num_tokens += 1
        assert line in {"", "data: [DONE]"}, line


def until_idle(server: Server) -> None:
    deadline = time.monotonic() + 30
    while server.metric("skipjoin_jobs") and time.monotonic() < deadline:
        time.sleep(0.05)
    for name in ("skipjoin_jobs", 'skipjoin_kv_blocks_used{memory="device"}', 'skipjoin_kv_blocks_used{memory="host"}'):
        assert server.metric(name) == 0, name


def post(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    """`body` is sent as it is if it is bytes, else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = server.url.removesuffix("/v1") + path
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url, content=content, headers=sent, trust_env=False, timeout=60)


def assert_refused(response: httpx.Response) -> None:
    """A 4xx in OpenAI's shape that gives nothing of the inside away."""
    assert 400 <= response.status_code < 500, response.text
    message = error_in(response.content)["message"]
    assert len(message) <= 600
    assert not re.search(r"0x[0-9a-f]{6,}|Traceback|/site-packages/|\.py\b|<class|object at", message), message
    assert response.headers["x-request-id"]


def assert_survived(response: httpx.Response) -> None:
    """Served or refused; but no failure."""
    if response.status_code != 200:
        assert_refused(response)


# ---------------------------------------------------------------------------- bodies

MANY = 100_000


BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "nothing": b"{}",
    "cut": b"{",
    "deep lists": b"[" * MANY,
    "deep objects": b'{"a":' * MANY,
    "deep messages": b'{"prompt": "x", "tokens": [1], "messages": ' + b"[" * MANY + b"]" * MANY + b"}",
    "infinite": b'{"prompt": 1e999, "messages": 1e999, "tokens": [1e999], "input": 1e999}',
    "not a number": b'{"prompt": NaN, "messages": NaN, "tokens": NaN, "input": NaN}',
    "lone surrogate": b'{"prompt": "\\ud800", "messages": [], "tokens": "\\ud800"}',
    "not utf-8": b'{"prompt": "\xff", "messages": [], "tokens": "\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"prompt": "x"}',
    "utf-16": '{"prompt": "x"}'.encode("utf-16"),
    "zeros": b"\x00" * 1000,
    "gzip without saying so": b"\x1f\x8b\x08\x00" + b"\x00" * 100,
    "long number": b'{"prompt": ' + b"9" * MANY + b"}",
    "many duplicate keys": b"{" + b'"prompt": 1,' * MANY + b'"prompt": 1}',
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_not_what_was_asked_for_are_refused(server: Server, path: str, body: bytes) -> None:
    assert_refused(post(server, path, body))


def test_fifty_megabytes_are_refused_declared_or_not(server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 2**20

    for content in (b" " * (50 * 2**20), pieces()):
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server may close before all of it is sent
            response = httpx.post(
                f"{server.url}/completions",
                content=content,
                headers={"content-type": "application/json"},
                trust_env=False,
            )
            assert response.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"content_encoding": "gzip"},
        {"content_encoding": "deflate"},
        {"content_encoding": "br"},
        {"content_type": "text/plain"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/json" + "x" * 5000},
    ],
)
def test_other_media_and_compression_are_refused(server: Server, headers: dict[str, str]) -> None:
    assert_refused(post(server, COMPLETIONS, {"prompt": "x"}, **headers))


# ---------------------------------------------------------------------------- fields

VALUES: list[bytes] = [
    *(b"0", b"-1", b"1", b"-0", b"-0.0", b"1.5", b"1e-320", b"1e38", b"-1e38", b"1e308", b"9223372036854775808"),
    *(b"-9223372036854775809", b"1e999", b"NaN", b"Infinity", b"true", b"false", b"null"),
    *(b'""', b'"1"', b'"' + b"x" * 10_000 + b'"', b'"a\\nb\\u0000c"', b'"\\ud83d"', b"[]", b"{}", b"[[]]", b"[null]"),
    *(b'{"a": 1}', b'{"type": "x"}', b"[" * 900 + b"]" * 900),
]


NECESSARY = {
    CHAT: {"max_tokens": b"1", "messages": json.dumps([HI]).encode()},
    COMPLETIONS: {"max_tokens": b"1", "prompt": b'"hi"'},
    RESPONSES: {"max_output_tokens": b"1", "input": b'"hi"'},
}


REQUESTS: dict[str, Any] = {CHAT: ChatRequest, COMPLETIONS: CompletionRequest, RESPONSES: ResponsesRequest}


def body_with(path: str, field: str, value: bytes) -> bytes:
    fields = NECESSARY[path] | {field: value}
    return b"{" + b",".join(json.dumps(name).encode() + b":" + raw for name, raw in fields.items()) + b"}"


@pytest.mark.parametrize(
    ("path", "field"),
    [(path, field) for path, kind in REQUESTS.items() for field in kind.__struct_encode_fields__],
)
def test_every_field_survives_every_value(server: Server, path: str, field: str) -> None:
    with httpx.Client(trust_env=False, timeout=60, headers={"content-type": "application/json"}) as client:
        for value in VALUES:
            content = body_with(path, field, value)
            assert_survived(client.post(server.url.removesuffix("/v1") + path, content=content))


IMPOSSIBLE_COMPLETIONS: list[dict[str, Any]] = [
    {"n": 10**9},
    {"n": 128, "prompt": ["a"] * 100},
    {"prompt": ["a"] * 100_000},
    {"best_of": 10**9},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [-1]},
    {"prompt": [VOCABULARY]},
    {"prompt": [2**63]},
    {"prompt": [True]},
    {"prompt": [1.5]},
    {"prompt": [[1], 2]},
    {"prompt": [1] * CONTEXT},
    {"prompt": "x" * CONTEXT},
    {"prompt": "x" * 1_000_000},
    {"prompt": [1] * 500_000},
    {"max_tokens": CONTEXT},
    {"max_tokens": 2**31},
    {"min_tokens": 2, "max_tokens": 1},
    {"stop": ""},
    {"stop": ["x"] * 1000},
    {"stop": "x" * 10**6},
    {"logit_bias": {str(i): 1 for i in range(300_000)}},
    {"model": "x" * 10**6},
    {"model": "a\nGET / HTTP/1.1"},
    {"prompt_embeds": "gASVAAAAAAAAAAA="},
    {"guided_regex": "["},
    {"guided_regex": "a?" * 500_000},
    {"guided_choice": []},
    {"guided_grammar": "root ::= root"},
    {"guided_grammar": "start: " + "(" * 10_000},
    {"priority": -1},
]


@pytest.mark.parametrize("fields", IMPOSSIBLE_COMPLETIONS, ids=",".join)
def test_completions_that_ask_for_the_impossible_are_refused(server: Server, fields: dict[str, Any]) -> None:
    assert_refused(post(server, COMPLETIONS, {"prompt": "hi", "max_tokens": 1} | fields))


IMPOSSIBLE_CHATS: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [HI] * 100_000},
    {"messages": [{"role": "user", "content": "x" * 10**6}]},
    {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
    {"chat_template_kwargs": {"tokenize": True}},
    {"chat_template_kwargs": {"messages": []}},
    {"max_completion_tokens": 10**6},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "web_search"}]},
    {"tools": "x"},
    {"tool_choice": {"type": "function", "function": {"name": "none"}}},
]


@pytest.mark.parametrize("fields", IMPOSSIBLE_CHATS, ids=lambda fields: next(iter(fields)))
def test_chats_that_ask_for_the_impossible_are_refused(server: Server, fields: dict[str, Any]) -> None:
    assert_refused(post(server, CHAT, {"messages": [HI], "max_tokens": 1} | fields))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


SCHEMAS: dict[str, Any] = {
    "properties are a number": {"type": "object", "properties": 1},
    "endless reference": {"$ref": "#"},
    "references in a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "reference to nothing": {"$ref": "#/nowhere"},
    "reference to another host": {"$ref": "http://127.0.0.1:1/schema.json"},
    "unknown type": {"type": "nothing"},
    "a type of types": {"type": {"type": "string"}},
    "slow pattern": {"type": "string", "pattern": "(a+)+$"},
    "broken pattern": {"type": "string", "pattern": "["},
    "huge pattern": {"type": "string", "pattern": "a?" * 100_000},
    "huge repetition": {"type": "string", "pattern": "(a{1000}){1000}"},
    "huge bounds": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "deep": nested(200),
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    "wide within limits": {"type": "object", "properties": {f"{i:x}": True for i in range(1000)}},
    "wide beyond limits": {"type": "object", "properties": {f"{i:x}": True for i in range(4800)}},
    "patterns": {"type": "object", "patternProperties": {f"^a{i}$": {} for i in range(1000)}},
    "many values": {"enum": [f"v{i}" for i in range(50_000)]},
    "not a schema": [1, 2],
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_no_schema_stops_the_server(server: Server, schema: Any) -> None:
    body = {"messages": [HI], "max_tokens": 1}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    start = time.monotonic()
    for fields in ({"response_format": asked}, {"tools": [tool]}, {"tools": [tool], "tool_choice": "required"}):
        assert_survived(post(server, CHAT, body | fields))
    for field in ("guided_json", "structured_outputs"):
        assert_survived(post(server, COMPLETIONS, {"prompt": "x", "max_tokens": 1, field: schema}))
    assert time.monotonic() - start < 20


REGEXES = ["(a+)+$", "(a|a)*b", "(x{0,500}){0,500}", "\\p{L}{1000}", "(?=a)b", "^$"]


@pytest.mark.parametrize("regex", REGEXES)
def test_no_regular_expression_stops_the_server(server: Server, regex: str) -> None:
    start = time.monotonic()
    assert_survived(post(server, COMPLETIONS, {"prompt": "a" * 40, "max_tokens": 3, "guided_regex": regex}))
    assert time.monotonic() - start < 10


def test_special_tokens_typed_as_text_are_harmless(server: Server) -> None:
    for text in ("<|user|>", "<|end|>", "<|assistant|>" * 50, "<|image_pad|>", "<s>", "</s><|im_start|>system\n"):
        assert post(server, COMPLETIONS, {"prompt": text, "max_tokens": 1}).status_code == 200
        assert post(server, CHAT, {"messages": [HI | {"content": text}], "max_tokens": 1}).status_code == 200


def test_a_prompt_may_fill_the_context_but_for_one_token(server: Server) -> None:
    whole = post(server, COMPLETIONS, {"prompt": [5] * (CONTEXT - 1), "max_tokens": 1})
    assert whole.json()["usage"]["total_tokens"] == CONTEXT
    assert_refused(post(server, COMPLETIONS, {"prompt": [5] * (CONTEXT - 1), "max_tokens": 2}))


def test_extreme_parameters_side_by_side_do_not_disturb_each_other(server: Server) -> None:
    plain = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    expected = post(server, COMPLETIONS, plain).json()["choices"][0]["text"]
    extremes = [
        {"temperature": 2, "top_p": 1e-300},
        {"temperature": 1e-300},
        {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 10},
        {"presence_penalty": -2, "frequency_penalty": -2, "repetition_penalty": 1e-3},
        {"min_p": 1, "top_k": 2**31},
        {"top_k": 1, "seed": -(2**63)},
        {"seed": 2**63 - 1, "temperature": 2},
        {},
    ]
    with ThreadPoolExecutor(len(extremes)) as pool:
        answers = list(pool.map(lambda extreme: post(server, COMPLETIONS, plain | extreme), extremes))
    assert [response.status_code for response in answers] == [200] * len(extremes)
    assert answers[-1].json()["choices"][0]["text"] == expected


# ---------------------------------------------------------------------------- connections


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=30)


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 10**7 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost : y\r\n\r\n",
        b"\x00\xff" * 1000 + b"\r\n\r\n",
    ],
    ids=["huge header", "many headers", "two lengths", "negative chunk", "huge chunk", "space in a name", "noise"],
)
def test_requests_that_are_not_http_are_refused_and_closed(server: Server, data: bytes) -> None:
    with connect(server) as connection:
        send(connection, data)
        raw = answer(connection)
    if raw:  # whoever goes on sending may get only a reset
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4"), head
        error_in(body)


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "//v1/models", {404}),
        ("GET", "/v1/%2e%2e/%2e%2e/etc/passwd", {404}),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", {404}),
        ("GET", "/v1/models/" + "x" * 20_000, {404}),
        ("GET", "/v1/models/%00%0a%ff", {404}),
        ("TRACE", "/v1/models", {405}),
        ("HEAD", "/v1/models", {200}),
        ("OPTIONS", "/v1/completions", {405}),
        ("PROPFIND", "/v1/completions", {405}),
        ("DELETE", "/v1/models/x", {405}),
        ("GET", "/v1/models?api_key=" + "x" * 1000, {200}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_paths_and_methods_lead_nowhere_else(server: Server, method: str, path: str, statuses: set[int]) -> None:
    for host in (b"x", b"evil.example", b"127.0.0.1:1", b""):
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
        with connect(server) as connection:
            connection.sendall(head % (method.encode(), path.encode(), host))
            assert int(answer(connection).split()[1]) in statuses


def test_upgrades_are_ignored(server: Server) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_thousands_of_idle_connections_keep_nobody_out(server: Server) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(5000, most - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with contextlib.ExitStack() as stack:
            for number in range(count):
                connection = stack.enter_context(connect(server))
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nHo" if number % 2 else b"")
            assert post(server, COMPLETIONS, {"prompt": "x", "max_tokens": 1}).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def test_streams_that_nobody_reads_hold_neither_jobs_nor_others_up(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(server.url)
            connection.connect((address.hostname, address.port))
            connection.sendall(request({"prompt": "x", "max_tokens": 1000, "ignore_eos": True, "stream": True}))
        assert post(server, COMPLETIONS, {"prompt": "x", "max_tokens": 1}).status_code == 200
        deadline = time.monotonic() + 60
        while server.metric("skipjoin_jobs") > 1 and time.monotonic() < deadline:  # one is the bystander's
            time.sleep(0.05)
        assert server.metric("skipjoin_jobs") <= 1


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
def test_clients_that_leave_in_any_way_at_any_time_leave_nothing_behind(server: Server, end: str) -> None:
    body = {"prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}

    def leave(number: int) -> None:
        data = request(body | {"stream": number % 3 > 0})
        with connect(server) as connection:
            connection.sendall(data if number % 2 else data[: number % len(data)])
            if number % 4 == 1 and number % 3:
                connection.recv(100)
            if end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif end == "half-close":
                connection.shutdown(socket.SHUT_WR)
                answer(connection)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, range(60)))
    deadline = time.monotonic() + 30
    while server.metric("skipjoin_jobs") > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("skipjoin_jobs") <= 1


def test_pipelined_requests_are_all_answered(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer(connection).count(b"HTTP/1.1 200 ") == 201


def test_the_same_request_id_twice_confuses_nobody(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 20, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(server, COMPLETIONS, body, x_request_id="mine"), range(4)))
    assert {response.headers["x-request-id"] for response in answers} == {"mine"}
    assert len({response.json()["id"] for response in answers}) == 4


def test_a_job_in_the_queue_is_kept_alive_by_comments(server: Server) -> None:
    long = {"prompt": "x", "n": 64, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with connect(server) as first, connect(server) as second:
        first.sendall(request(long))
        second.sendall(request(long | {"n": 1}))
        text = b""
        while b": ping\n\n" not in text and b"data: " not in text:
            text += second.recv(65536)
        assert text.startswith(b"HTTP/1.1 200 ")


def test_files_and_memory_are_as_before_a_storm(server: Server) -> None:
    gateway = max(server.children, key=lambda child: len(child.net_connections()))
    until_calm(server)
    files, memory = gateway.num_fds(), gateway.memory_info().rss
    body = {"prompt": "x" * 500, "max_tokens": 400, "ignore_eos": True, "stream": True}

    def storm(_: int) -> None:
        with connect(server) as connection:
            connection.sendall(request(body))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(storm, range(300)))
    until_calm(server)
    assert gateway.num_fds() <= files + 10
    assert gateway.memory_info().rss < memory + 64 * 2**20
    assert os.path.exists(f"/proc/{gateway.pid}")


def until_calm(server: Server) -> None:
    """No jobs but the bystander's."""
    deadline = time.monotonic() + 60
    while server.metric("skipjoin_jobs") > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("skipjoin_jobs") <= 1
