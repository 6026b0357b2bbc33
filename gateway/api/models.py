"""GET /v1/models and /v1/models/{id}: the one model that is served."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.schema import Model, ModelList
from gateway.api.service import Service


class ModelsEndpoint:
    """Serves what there is to know about the model."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        return _json(ModelList([self._model()]))

    async def retrieve(self, request: Request) -> Response:
        """Ids may have slashes in them, as hub ids do."""
        self._service.check_model(request.path_params["id"].rstrip("/"))
        return _json(self._model())

    def _model(self) -> Model:
        service = self._service
        return Model(service.served_name, service.started, service.engine.max_context)


def _json(record: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(record), media_type="application/json")
