"""The OpenAPI document says what is served, and the page shows it without help from outside."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from fakes_gateway import OPEN, FakeEngine, byte_text_model, http_client, serving
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from common.config import Config
from gateway.api.schema import REFUSED
from gateway.app import create_app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    with http_client() as http:
        return dict(http.get(f"{url}/openapi.json").json())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        value = list(value.values())
    for one in value if isinstance(value, list) else []:
        yield from references(one)


def test_every_route_is_described(document: dict[str, Any]) -> None:
    app = create_app(Config(), FakeEngine(), byte_text_model(), CollectorRegistry(), OPEN)
    routes = [route for route in app.routes if isinstance(route, Route)]
    served = {
        (route.path.removesuffix("/").replace(":path", ""), method)
        for route in routes
        for method in route.methods or ()
    }
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == {(path, method) for path, method in served if method != "HEAD"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        value = document
        for key in reference.removeprefix("#/").split("/"):
            value = value[key]


def test_bounds_and_choices_are_those_of_the_records(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["ChatRequest"]
    assert request["required"] == ["messages"]
    assert request["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}


def test_fields_that_are_refused_are_not_offered(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["ChatRequest"]
    assert not REFUSED.keys() & request["properties"].keys()


def test_streams_are_described_beside_whole_answers(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}


def test_the_version_is_that_of_the_package(url: str, document: dict[str, Any]) -> None:
    with http_client() as http:
        assert http.get(f"{url}/version").json() == {"version": version("skipjoin")}
    assert document["info"]["version"] == version("skipjoin")


def test_the_page_names_every_path_and_record_and_loads_nothing(url: str, document: dict[str, Any]) -> None:
    with http_client() as http:
        page = http.get(f"{url}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in [*document["paths"], *document["components"]["schemas"]]:
        assert name in page.text
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert all(link.startswith("#") or link == "openapi.json" for link in links)
    anchors = set(re.findall(r'id="([^"]*)"', page.text))
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
