"""What clients can ask for: the one table that routes and the OpenAPI document are made from."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method on a path, what serves it, and the records that go in and out."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    request: Any = None  # a type that msgspec knows; None: no body
    answer: Any = None  # None: text that is not JSON
    chunk: Any = None  # of the events, where the answer can be streamed
    media_type: str = "application/json"
