"""Errors as OpenAI's clients understand them: one exception, one JSON shape, for every status. Knows no endpoint."""

import math
import re
import secrets
from collections.abc import Awaitable, Mapping
from typing import TypedDict

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.accounts import LimitReached
from gateway.generation import Failure, QueueFull, State, Unavailable

STREAM_FAILED = "skipjoin.failed"  # in the scope of a request whose stream, begun with a 200, ended with an error
CLIENT_GONE = 499  # nobody reads it; for metrics and logs

_LONGEST_MESSAGE = 600  # characters; messages may quote what a client sent
_LONGEST_RETRY_S = 120.0  # clients ignore a larger one, and then do not retry at all
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNAVAILABLE: dict[State, tuple[str, str]] = {
    "loading": ("model_loading", "The model is still loading."),
    "draining": ("draining", "The server is shutting down and takes no new requests."),
    "lost": ("worker_lost", "The server has lost its workers."),
}


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error. `param` names the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        detail = ErrorDetail(message=message[:_LONGEST_MESSAGE], type=type, param=param, code=code)
        self.body = ErrorBody(error=detail)

    def response(self) -> Response:
        return Response(msgspec.json.encode(self.body), self.status, self.headers, "application/json")


# ---------------------------------------------------------------------------- the errors by name


def invalid_value(message: str, param: str | None) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)


def unsupported(param: str) -> ApiError:
    return ApiError(400, f"{param} is not supported by this server", code="unsupported_parameter", param=param)


def context_too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="context_length_exceeded", param=param)


def generation_failed(failure: Failure) -> ApiError:
    """Clients send again what a server failed on, but not what is wrong with them."""
    if failure.by_request:
        return ApiError(400, failure.message, code="unsatisfiable")
    return ApiError(500, failure.message, type="server_error", code="generation_failed")


def queue_full(full: QueueFull) -> ApiError:
    return ApiError(
        429,
        "Too many requests are waiting; try again later.",
        type="rate_limit_error",
        code="queue_full",
        headers=_retry_after(full.retry_after_s),
    )


def limit_reached(reached: LimitReached) -> ApiError:
    period = "at once" if reached.limit == "jobs" else "per minute"
    return ApiError(
        429,
        f"This key may use {reached.most} {reached.limit} {period}; try again later.",
        type=reached.limit,
        code="rate_limit_exceeded",
        headers=_retry_after(reached.retry_after_s),
    )


def unavailable(state: State, retry_after_s: float) -> ApiError:
    code, message = _UNAVAILABLE.get(state, ("unavailable", "The server takes no requests now."))
    return ApiError(503, message, type="server_error", code=code, headers=_retry_after(retry_after_s))


def _retry_after(seconds: float) -> dict[str, str]:
    """Both headers: old clients know only whole seconds, and read 0 as not given."""
    seconds = min(max(seconds, 0.001), _LONGEST_RETRY_S)
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


# ---------------------------------------------------------------------------- from exception to response


async def answer_error(request: Request, error: Exception) -> Response:
    """The one exception handler of the application."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    return _as_api_error(request, error).response()


HANDLED = (ApiError, LimitReached, QueueFull, Unavailable, HTTPException, ClientDisconnect, Exception)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case LimitReached():
            return limit_reached(error)
        case QueueFull():
            return queue_full(error)
        case Unavailable():
            return unavailable(error.state, error.retry_after_s)
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
            message = f"{error.detail}: {request.method} {request.url.path}"
            return ApiError(error.status_code, message, code=code, headers=error.headers)
    # A bug. The server logs it with its trace; the client gets the id to ask about, and no more. This answer is made
    # outside of RequestIds, so it names the id itself.
    request_id = request_id_of(request.scope)
    message = f"The server failed on this request. Its id is {request_id}."
    headers = {"x-request-id": request_id}
    return ApiError(500, message, type="server_error", code="internal_error", headers=headers)


# ---------------------------------------------------------------------------- request ids


class RequestIds:
    """Middleware: every response carries `x-request-id`, the client's own if it is sane."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["skipjoin.request_id"] = _request_id(scope)

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            return send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(scope: Scope) -> str:
    return str(scope["skipjoin.request_id"])


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if _SANE_REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"
