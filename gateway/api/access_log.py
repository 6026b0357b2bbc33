"""One line in the log for each request: who, what, how it ended, how long it took. No keys, queries or texts."""

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.errors import CLIENT_GONE, request_id_of

log = logging.getLogger(__name__)

_PROBES = {"/livez", "/readyz", "/health", "/metrics"}  # asked every few seconds: for debugging only
_LONGEST_PATH = 100


class AccessLog:
    """Middleware that writes the line when the last byte is out."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status, size = self._clock(), CLIENT_GONE, 0

        # No coroutine, like all that only look at what is sent: in a stream each would be one more for every token.
        def watch(message: Message) -> Awaitable[None]:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            return send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
            log.log(level, "%s", _line(scope, status, size, self._clock() - start))


def _line(scope: Scope, status: int, size: int, seconds: float) -> str:
    # As it came, escaped: decoded paths may have line breaks in them.
    path = scope["raw_path"].decode("ascii", "replace")[:_LONGEST_PATH]
    account = scope.get("skipjoin.account")
    name = "-" if account is None else account.name
    return f"{scope['method']} {path} {status} {size} B {seconds:.3f} s key={name} id={request_id_of(scope)}"
