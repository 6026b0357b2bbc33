"""The OpenAPI document of the server, from its table of operations and the very records that it decodes and encodes.

Also a page that shows it, complete in itself: machines on clusters reach no CDN.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import Version
from gateway.api.errors import ErrorBody
from gateway.api.operations import Operation
from gateway.api.respond import json_response
from gateway.api.schema import REFUSED

VERSION = version("skipjoin")

_PAGE = Path(__file__).parents[1] / "web" / "docs.html"
_PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_ERROR = {"$ref": "#/components/responses/Error"}


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document of `operations`."""
    records = {id(kind): kind for operation in operations for kind in _records(operation)}
    schemas, components = msgspec.json.schema_components([*records.values(), ErrorBody], ref_template=_REFERENCE)
    schema_of = dict(zip([*records, id(ErrorBody)], schemas, strict=True))
    for component in components.values():
        _hide_refused(component)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schema_of)
    error = {"description": "What went wrong.", "content": _json(schema_of[id(ErrorBody)])}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skipjoin", "version": VERSION, "description": "An OpenAI-compatible LLM server."},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _records(operation: Operation) -> Iterator[Any]:
    yield from (kind for kind in (operation.request, operation.answer, operation.chunk) if kind is not None)


def _operation(operation: Operation, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {}}
    if operation.answer is not None:
        content[operation.media_type] = {"schema": schema_of[id(operation.answer)]}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": schema_of[id(operation.chunk)]}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _name(operation),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(operation.path)
        ],
        "responses": {"200": {"description": "The answer.", "content": content}, "default": _ERROR},
    }
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": _json(schema_of[id(operation.request)])}
    return described


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _name(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.path.replace(":path", ""))
    return "_".join([operation.method.lower(), *words])


def _hide_refused(component: dict[str, Any]) -> None:
    """Fields that are only there to be refused are no part of what the server offers."""
    for name in REFUSED.keys() & component.get("properties", {}).keys():
        del component["properties"][name]


class OpenApiEndpoint:
    """Serves the document, the page and the version."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations

    async def document(self, request: Request) -> Response:
        return Response(msgspec.json.encode(self._document), media_type="application/json")

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=_PAGE_HEADERS)

    async def version(self, request: Request) -> Response:
        return json_response(Version(VERSION))

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi(self._operations)

    @cached_property
    def _page(self) -> str:
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(_PAGE.read_text(encoding="utf-8")).render(self._document)
