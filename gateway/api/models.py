"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import Model, ModelList
from gateway.api.respond import json_response
from gateway.api.service import Service


class ModelsEndpoint:
    """Serves what there is to know about the model."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        return json_response(ModelList([self._model()]))

    async def retrieve(self, request: Request) -> Response:
        """Ids may have slashes in them, as hub ids do."""
        self._service.check_model(request.path_params["id"].rstrip("/"))
        return json_response(self._model())

    def _model(self) -> Model:
        service = self._service
        return Model(service.served_name, service.started, service.engine.max_context)
