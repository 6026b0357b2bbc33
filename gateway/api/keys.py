"""API keys: who holds one, and the middleware that lets nobody else in.

Only hashes are kept, in the file and in memory. A key that `new_key` made has 256 random bits, so that a plain SHA-256
of it tells nothing; there is no password here for which a slow hash would be needed.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.config import Config, ConfigError
from gateway.accounts import Account, Bucket, Clock, LimitReached, Limits
from gateway.api.errors import ApiError, limit_reached

ENVIRONMENT = "SKIPJOIN_API_KEYS"
PUBLIC = {"/livez", "/readyz", "/health", "/metrics", "/version", "/openapi.json", "/docs"}

EVERYBODY = Account("-", Limits())  # of servers without keys, and of what needs none


class KeyEntry(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the key file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that open the door, as hashes."""

    accounts: Mapping[bytes, Account]

    def account_of(self, key: str) -> Account | None:
        """Compares with every key, and each in constant time: how long it takes tells nothing about any of them."""
        digest, found = _digest(key), None
        for known, account in self.accounts.items():
            if hmac.compare_digest(known, digest):
                found = account
        return found


def load_keys(config: Config, environment: Mapping[str, str] = os.environ, clock: Clock = time.monotonic) -> KeyRing:
    """The keys of --api-key-file and of the environment; no keys at all: an open server. Raises ConfigError."""
    given = [key for key in environment.get(ENVIRONMENT, "").replace(",", " ").split() if key]
    accounts = {_digest(key): Account(f"key{i}", Limits(), clock) for i, key in enumerate(given, 1)}
    taken = {account.name for account in accounts.values()}
    for name, entry in (_read(Path(config.api_key_file)) if config.api_key_file else {}).items():
        if name in taken:  # Who has the same name shares KV and answers.
            raise ConfigError(f"--api-key-file: [{name}] is the name of a key in {ENVIRONMENT}; choose another")
        accounts[bytes.fromhex(entry.sha256)] = Account(name, entry, clock)
    if config.api_key_file and not accounts:
        raise ConfigError(f"{config.api_key_file} has no keys; make one with: skipjoin key NAME")
    return KeyRing(accounts)


def new_key(name: str, limits: Limits) -> tuple[str, str]:
    """A new key, and the table for the key file."""
    key = "sk-" + secrets.token_urlsafe(32)
    entry = KeyEntry(sha256=_digest(key).hex(), **msgspec.to_builtins(limits))
    fields = (f"{field} = {msgspec.json.encode(value).decode()}" for field, value in msgspec.to_builtins(entry).items())
    return key, "\n".join([f"[{msgspec.json.encode(name).decode()}]", *fields]) + "\n"


def _read(path: Path) -> dict[str, KeyEntry]:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=dict[str, KeyEntry])
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


# ---------------------------------------------------------------------------- at the door


class Door:
    """Middleware: finds out whose request it is, counts it, and tells them what they have left."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            account = scope["skipjoin.account"] = self._admit(scope)
            if scope["method"] == "POST":
                account.take_request()
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except LimitReached as reached:
            await limit_reached(reached).response()(scope, receive, _with_limits(account, send))
            return
        await self._app(scope, receive, _with_limits(account, send))

    def _admit(self, scope: Scope) -> Account:
        if not self._keys.accounts or scope["path"].rstrip("/") in PUBLIC:
            return EVERYBODY
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        account = self._keys.account_of(key.strip()) if scheme.lower() == "bearer" else None
        if account is None:
            raise ApiError(
                401,
                "This server wants an API key that it knows, as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return account


def account_of(request: Request) -> Account:
    account = request.scope["skipjoin.account"]
    assert isinstance(account, Account)
    return account


def _with_limits(account: Account, send: Send) -> Send:
    buckets = {"requests": account.requests, "tokens": account.tokens}
    limited = {name: bucket for name, bucket in buckets.items() if bucket is not None}
    if not limited:
        return send

    def send_with_limits(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, bucket in limited.items():
                _tell(headers, name, bucket)
        return send(message)

    return send_with_limits


def _tell(headers: MutableHeaders, name: str, bucket: Bucket) -> None:
    headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
    headers[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining)
    headers[f"x-ratelimit-reset-{name}"] = f"{bucket.full_in_s:.3f}s"
