"""What supervisors and monitors ask: is the process alive, can it serve, and its metrics."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import Status
from gateway.api.errors import unavailable
from gateway.api.respond import json_response
from gateway.api.service import Service

RETRY_AFTER_S = 5.0


class HealthEndpoint:
    """Serves probes and metrics."""

    def __init__(self, service: Service, registry: CollectorRegistry) -> None:
        self._service = service
        self._registry = registry

    async def live(self, request: Request) -> Response:
        """200 as long as the process answers at all: restart it only when this fails."""
        return json_response(Status("alive"))

    async def ready(self, request: Request) -> Response:
        """200 only when new requests are taken: send no traffic otherwise."""
        state = self._service.engine.state
        if state != "ready":
            raise unavailable(state, RETRY_AFTER_S)
        return json_response(Status("ready"))

    async def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})
