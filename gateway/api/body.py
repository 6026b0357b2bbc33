"""Reading a request's body: within a size, within a time, and only as plain JSON. Does not decode it."""

import asyncio

from starlette.requests import Request

from gateway.api.errors import ApiError

READ_TIMEOUT_S = 120.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises ApiError when it is too large (declared or found), too slow, compressed, or not JSON by name."""
    _check_headers(request, max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise ApiError(408, "The body of the request came too slowly.", code="request_timeout") from None
    return bytes(body)


def _check_headers(request: Request, max_bytes: int) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(415, "Compressed bodies are not accepted.", code="unsupported_media_type")
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "The body must have Content-Type: application/json.", code="unsupported_media_type")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
