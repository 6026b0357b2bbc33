"""The access log: a line for each request, with nothing in it that is nobody's business."""

import logging
import re

import pytest
from fakes_gateway import FakeEngine, http_client, serving
from test_errors import BrokenEngine

from gateway.accounts import Account, Limits
from gateway.api.keys import KeyRing, _digest

LOGGER = "gateway.api.access_log"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_a_request_is_one_line_with_status_size_time_key_and_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    keys = KeyRing({_digest("sk-1"): Account("alice", Limits())})
    headers = {"x-request-id": "mine", "authorization": "Bearer sk-1"}
    with serving(keys=keys) as url, http_client() as http:
        size = len(http.post(f"{url}/v1/completions", json={"prompt": "my secret"}, headers=headers).content)
        http.get(f"{url}/v1/models", headers={"x-request-id": "theirs"})
    first, second = lines(caplog)
    assert re.fullmatch(rf"POST /v1/completions 200 {size} B \d+\.\d{{3}} s key=alice id=mine", first)
    assert re.fullmatch(r"GET /v1/models 401 \d+ B \d+\.\d{3} s key=- id=theirs", second)


def test_neither_texts_nor_queries_nor_line_breaks_get_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    with serving() as url, http_client() as http:
        http.post(f"{url}/v1/completions?key=sk-1", json={"prompt": "my secret"})
        http.get(f"{url}/%0aGET%20/forged{'x' * 1000}")
    text = "".join(lines(caplog))
    assert not re.search(r"secret|Hello|sk-1|\n", text)
    assert len(text) < 400


def test_a_bug_and_a_client_that_left_are_lines_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    with serving(BrokenEngine()) as url, http_client() as http:
        http.post(f"{url}/v1/completions", json={"prompt": "x"})
    assert " 500 " in lines(caplog)[0]


def test_probes_are_for_debugging_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    with serving(FakeEngine()) as url, http_client() as http:
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            http.get(url + path)
    assert not lines(caplog)
