"""uvicorn as this server runs it: connections have bounds on their headers and deadlines, and all errors one shape."""

import asyncio
import contextlib
import logging
import resource
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common.config import Config
from gateway.api.errors import ApiError, new_request_id

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 * 2**10  # request line and headers
MAX_HEADERS = 100
HEAD_TIMEOUT_S = 20.0  # from a connection's first moment, or a request's first byte, to the end of its headers
SEND_TIMEOUT_S = 300.0  # a client that reads so little for so long has forgotten its answer
LINGER_S = 2.0  # for a client that is still sending what nobody will read to see why
_KEEP_ALIVE_S = 30  # longer than clients keep a connection, so that they do not use one that is being closed
_CLOSE_TIMEOUT_S = 3


class HttpServer(uvicorn.Server):
    """uvicorn without signal handling of its own: the first signal drains, and answers go on meanwhile."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(config: Config, app: ASGIApp, **overrides: Any) -> HttpServer:
    """The server of `app`. Raises OSError when there are no such certificates."""
    options = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # of what strangers send there is no end; the access log tells the rest
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        **overrides,
    )
    try:
        options.load()
    except OSError as error:
        raise OSError(f"cannot use --ssl-certfile {config.ssl_certfile}: {error}") from None
    return HttpServer(options)


def raise_open_files_limit() -> None:
    """As many connections as the system allows: each is an open file, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Connection(HttpToolsProtocol):
    """A connection that ends when its client sends too much, or nothing, where headers are due; or reads nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # headers are due, or coming
        self._head_bytes = 0
        self._refusal = ApiError(400, "This is not a request in HTTP/1.1.", code="invalid_http")
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_send_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:  # line breaks before a request are no beginning
                self._set_deadline(HEAD_TIMEOUT_S)
        super().data_received(data)
        # A single endless header reaches no callback of the parser, so it is counted here.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_head_too_large())

    # ------------------------------------------------------------------------------------------ a client that is slow

    def pause_writing(self) -> None:
        """Much is written that the client has not read: whoever sends waits from now on."""
        super().pause_writing()
        self._send_deadline = self.loop.call_later(SEND_TIMEOUT_S, self._on_send_deadline)

    def resume_writing(self) -> None:
        self._clear_send_deadline()
        super().resume_writing()

    def _clear_send_deadline(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _on_send_deadline(self) -> None:
        log.warning("a client read next to nothing of its answer for %.0f s; dropped it", SEND_TIMEOUT_S)
        self.transport.abort()

    # ------------------------------------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        self._head_bytes = max(1, self._head_bytes)  # it may begin within the data that the last one ended in
        self._set_deadline(HEAD_TIMEOUT_S)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in self.headers) > MAX_HEAD_BYTES:
            self._refusal = _head_too_large()
            raise ValueError("too many headers")  # ends the parsing: uvicorn asks for a refusal then

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._clear_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        if self.cycle.response_complete:
            self._set_deadline(_KEEP_ALIVE_S)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete:
            self._set_deadline(LINGER_S)  # the answer did not wait for the body's end; neither shall we for long

    # ------------------------------------------------------------------------------------------ ends

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, error: ApiError) -> None:
        """Answer below the application, and close."""
        error.headers |= {"connection": "close", "x-request-id": new_request_id()}
        response = error.response()
        head = [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in response.raw_headers), b"\r\n"]
        self.transport.write(b"".join(head) + bytes(response.body))
        self.transport.close()

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        if self._in_head and self._head_bytes and not self.transport.is_closing():
            self._refuse(ApiError(408, "The headers of the request came too slowly.", code="request_timeout"))
        self.transport.close()


def _head_too_large() -> ApiError:
    most = f"{MAX_HEAD_BYTES} bytes in {MAX_HEADERS} headers"
    return ApiError(431, f"The headers of the request are larger than {most}.", code="headers_too_large")
