"""The HTTP application: routes, middleware and error handlers around one engine. Holds no state of its own."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from common.config import Config
from gateway.api.access_log import AccessLog
from gateway.api.answers import (
    Answer,
    ChatChoice,
    ChunkChoice,
    CompletionChoice,
    Model,
    ModelList,
    Status,
    Text,
    Tokens,
    Version,
)
from gateway.api.chat import ChatEndpoint
from gateway.api.completions import CompletionEndpoint
from gateway.api.errors import HANDLED, RequestIds, answer_error
from gateway.api.health import HealthEndpoint
from gateway.api.idempotency import Idempotency
from gateway.api.keys import Door, KeyRing
from gateway.api.models import ModelsEndpoint
from gateway.api.openapi import OpenApiEndpoint
from gateway.api.operations import Endpoint, Operation
from gateway.api.responses.endpoint import ResponsesEndpoint
from gateway.api.responses.records import Deleted, Event, InputTokens, ItemList, Response, ResponsesRequest
from gateway.api.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from gateway.api.service import Service
from gateway.api.tokenization import TokenizationEndpoint
from gateway.generation import Engine
from gateway.metrics import HttpMetrics, RequestCounter
from gateway.text.text_model import TextModel


def create_app(
    config: Config, engine: Engine, text: TextModel, registry: CollectorRegistry, keys: KeyRing
) -> Starlette:
    """The application that serves `engine` to who has one of `keys`; its metrics go to `registry`."""
    # Its default ends all streams at SIGTERM; ours drain: they end when their jobs do.
    AppStatus.enable_automatic_graceful_drain = False
    metrics = HttpMetrics(registry)
    service = Service(config, engine, text, metrics)
    service.grammars.load()
    app = Starlette(
        routes=list(_routes(service, registry)),
        middleware=[
            Middleware(RequestIds),
            Middleware(AccessLog),
            Middleware(RequestCounter, metrics),
            *([Middleware(CORSMiddleware, **_cross_origin(config))] if config.cors_origins else []),
            Middleware(Door, keys),
            Middleware(Idempotency, config.max_body_bytes),
        ],
        exception_handlers=dict.fromkeys(HANDLED, answer_error),
    )
    app.router.redirect_slashes = False  # clients follow redirects badly; both forms are routes
    return app


def _cross_origin(config: Config) -> dict[str, Any]:
    """Browsers ask before they let a page send JSON or a key, and hide all headers but these from it."""
    return {
        "allow_origins": config.cors_origins,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": ["x-request-id", "retry-after", "retry-after-ms", "x-ratelimit-*"],
    }


def _routes(service: Service, registry: CollectorRegistry) -> Iterator[Route]:
    """One for each path: a wrong method is then told of all that are right."""
    endpoints: dict[str, dict[str, Endpoint]] = {}
    for operation in _operations(service, registry):
        endpoints.setdefault(operation.path, {})[operation.method] = operation.endpoint
    for path, by_method in endpoints.items():
        yield Route(path, _ByMethod(by_method), methods=list(by_method))
        yield Route(path + "/", _ByMethod(by_method), methods=list(by_method))


class _ByMethod:
    """The endpoints of a path, as an application: Starlette wraps functions in a second handler of exceptions."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        response = await self._endpoints[method](Request(scope, receive, send))
        await response(scope, receive, send)


def _operations(service: Service, registry: CollectorRegistry) -> list[Operation]:
    chat, completions, models = ChatEndpoint(service), CompletionEndpoint(service), ModelsEndpoint(service)
    tokenization, health = TokenizationEndpoint(service, chat), HealthEndpoint(service, registry)
    table = [
        Operation(
            "POST",
            "/v1/chat/completions",
            chat.create,
            "The assistant's next message.",
            ChatRequest,
            Answer[ChatChoice],
            Answer[ChunkChoice],
        ),
        Operation(
            "POST",
            "/v1/completions",
            completions.create,
            "The continuation of a raw prompt.",
            CompletionRequest,
            Answer[CompletionChoice],
            Answer[CompletionChoice],
        ),
        *_responses(ResponsesEndpoint(service, chat)),
        Operation("GET", "/v1/models", models.list, "The model that is served.", answer=ModelList),
        Operation("GET", "/v1/models/{id:path}", models.retrieve, "The same model, by its id.", answer=Model),
        Operation("POST", "/tokenize", tokenization.tokenize, "The tokens of a text.", TokenizeRequest, Tokens),
        Operation("POST", "/detokenize", tokenization.detokenize, "The text of tokens.", DetokenizeRequest, Text),
        Operation("GET", "/health", health.ready, "Does the server take requests?", answer=Status),
        Operation("GET", "/readyz", health.ready, "The same.", answer=Status),
        Operation("GET", "/livez", health.live, "Is the process alive?", answer=Status),
        Operation("GET", "/metrics", health.metrics, "Metrics for Prometheus.", media_type="text/plain"),
    ]
    about = OpenApiEndpoint(table)
    table += [
        Operation("GET", "/version", about.version, "The version of Skipjoin.", answer=Version),
        Operation("GET", "/openapi.json", about.document, "This document.", answer=dict[str, Any]),
        Operation("GET", "/docs", about.page, "This page.", media_type="text/html"),
    ]
    return table


def _responses(responses: ResponsesEndpoint) -> list[Operation]:
    path = "/v1/responses"
    return [
        Operation(
            "POST", path, responses.create, "The next response of a conversation.", ResponsesRequest, Response, Event
        ),
        Operation("POST", f"{path}/input_tokens", responses.count, "How long it is.", ResponsesRequest, InputTokens),
        Operation(
            "GET", f"{path}/{{id}}", responses.retrieve, "A response as it stands.", answer=Response, chunk=Event
        ),
        Operation("DELETE", f"{path}/{{id}}", responses.delete, "Forget a response.", answer=Deleted),
        Operation("POST", f"{path}/{{id}}/cancel", responses.cancel, "Stop a response.", answer=Response),
        Operation("GET", f"{path}/{{id}}/input_items", responses.input_items, "What it answers.", answer=ItemList),
    ]
