"""The application as a whole: paths, probes, models and metrics."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fakes_gateway import NAME, FakeEngine, client_of, http_client, serving
from prometheus_client import CollectorRegistry


def get(url: str, **options: Any) -> httpx2.Response:
    with http_client() as http:
        return http.get(url, **options)


def post(url: str, **options: Any) -> httpx2.Response:
    with http_client() as http:
        return http.post(url, **options)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny/bytes", "/health", "/livez", "/readyz", "/metrics"])
def test_every_path_works_with_a_slash_and_without_a_redirect(url: str, path: str) -> None:
    assert get(url + path).status_code == 200
    assert get(url + path + "/").status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/", "/v1/chat/completions/"])
def test_posts_too(url: str, path: str) -> None:
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    assert post(url + path, json=body).status_code == 200


def test_the_client_lists_and_retrieves_the_model() -> None:
    with client_of(FakeEngine(max_context=77)) as client:
        [listed] = client.models.list().data
        assert client.models.retrieve(NAME) == listed
    assert (listed.id, listed.object, (listed.model_extra or {})["max_model_len"]) == (NAME, "model", 77)


def test_a_served_name_replaces_the_models_own_in_lists() -> None:
    with client_of(served_model_name="chatty") as client:
        assert [model.id for model in client.models.list()] == ["chatty"]
        assert client.models.retrieve(NAME).id == "chatty"


@pytest.mark.parametrize("state", ["loading", "draining", "lost"])
def test_only_a_ready_engine_is_ready_but_the_process_is_alive(state: Any) -> None:
    engine = FakeEngine()
    engine.state = state
    with serving(engine) as url:
        assert get(f"{url}/livez").json() == {"status": "alive"}
        for path in ("/health", "/readyz"):
            response = get(url + path)
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "server_error"
            assert response.headers["retry-after"]


def test_metrics_count_responses_tokens_and_times() -> None:
    registry = CollectorRegistry()
    with serving(registry=registry) as url:
        post(f"{url}/v1/completions", json={"prompt": "abc"})
        get(f"{url}/nowhere/a")
        get(f"{url}/nowhere/b")
        text = get(f"{url}/metrics").text
    lines = set(text.splitlines())
    assert 'skipjoin_http_requests_total{route="/v1/completions",status="200"} 1.0' in lines
    assert 'skipjoin_http_requests_total{route="none",status="404"} 2.0' in lines
    assert 'skipjoin_prompt_tokens_total{endpoint="completions"} 3.0' in lines
    assert 'skipjoin_completion_tokens_total{endpoint="completions"} 13.0' in lines
    assert 'skipjoin_time_to_first_token_seconds_count{endpoint="completions"} 1.0' in lines
    assert 'skipjoin_job_completion_seconds_count{endpoint="completions"} 1.0' in lines


def test_metrics_come_in_the_form_that_was_asked_for(url: str) -> None:
    openmetrics = get(f"{url}/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_the_gateway_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, gateway.app, gateway.text.text_model; print({'torch', 'transformers', 'mpi4py'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"
