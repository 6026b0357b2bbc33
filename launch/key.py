"""`skipjoin key`: a new API key, once in the clear for its holder, and hashed for the server's file."""

import sys
from dataclasses import dataclass
from typing import Annotated

import msgspec
import tyro

from common.config import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Make an API key: `skipjoin key NAME >> keys.toml`. The key itself is shown once and kept nowhere."""

    name: Annotated[str, tyro.conf.Positional]
    """Whose key it is; the access log names it."""
    requests_per_minute: int | None = None
    """Requests that the key may make in a minute. Default: no limit."""
    tokens_per_minute: int | None = None
    """Tokens, of prompts and answers together, that it may use in a minute. Default: no limit."""
    concurrent_jobs: int | None = None
    """Choices that it may have in the making at once. Default: no limit."""

    def run(self) -> int:
        """Raises ConfigError."""
        from gateway.accounts import Limits  # noqa: PLC0415 - a worker imports no HTTP
        from gateway.api.keys import new_key  # noqa: PLC0415

        wanted = {
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrent_jobs": self.concurrent_jobs,
        }
        try:
            limits = msgspec.convert(wanted, Limits)  # says no to what a server would not take
        except msgspec.ValidationError as error:
            raise ConfigError(f"no such limit: {error}") from None
        key, table = new_key(self.name, limits)
        print(table)
        print(f"The key of {self.name}: {key}", file=sys.stderr)
        return 0
