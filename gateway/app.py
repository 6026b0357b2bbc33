"""The HTTP application: routes, middleware and error handlers around one engine. Holds no state of its own."""

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.config import Config
from gateway.api.chat import ChatEndpoint
from gateway.api.completions import CompletionEndpoint
from gateway.api.errors import HANDLED, RequestIds, answer_error
from gateway.api.health import HealthEndpoint
from gateway.api.models import ModelsEndpoint
from gateway.api.service import Service
from gateway.generation import Engine
from gateway.metrics import HttpMetrics, RequestCounter
from gateway.text.text_model import TextModel

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(config: Config, engine: Engine, text: TextModel, registry: CollectorRegistry) -> Starlette:
    """The application that serves `engine` in the words of `text`; its metrics go to `registry`."""
    # Its default ends all streams at SIGTERM; ours drain: they end when their jobs do.
    AppStatus.enable_automatic_graceful_drain = False
    metrics = HttpMetrics(registry)
    app = Starlette(
        routes=list(_routes(Service(config, engine, text, metrics), registry)),
        middleware=[Middleware(RequestIds), Middleware(RequestCounter, metrics)],
        exception_handlers=dict.fromkeys(HANDLED, answer_error),
    )
    app.router.redirect_slashes = False  # clients follow redirects badly; both forms are routes
    return app


def _routes(service: Service, registry: CollectorRegistry) -> Iterator[Route]:
    chat, completions, models = ChatEndpoint(service), CompletionEndpoint(service), ModelsEndpoint(service)
    health = HealthEndpoint(service, registry)
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/v1/chat/completions", chat.create),
        ("POST", "/v1/completions", completions.create),
        ("GET", "/v1/models", models.list),
        ("GET", "/v1/models/{id:path}", models.retrieve),
        ("GET", "/health", health.ready),
        ("GET", "/readyz", health.ready),
        ("GET", "/livez", health.live),
        ("GET", "/metrics", health.metrics),
    ]
    for method, path, endpoint in table:
        yield Route(path, endpoint, methods=[method])
        yield Route(path + "/", endpoint, methods=[method])
