"""Who asks, and how much they may: requests and tokens in a minute, jobs at once. Knows no HTTP, and no secrets.

A minute's worth is a bucket that refills steadily. Output is not known before it is there, so tokens are charged when
they come: a bucket may end up in debt, and then new requests wait until it is paid.
"""

import time
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Clock = Callable[[], float]
Limit = Literal["requests", "tokens", "jobs"]
Amount = Annotated[int, Meta(ge=1, le=2**53)]

JOB_RETRY_S = 1.0  # nobody knows when a job will end


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """None: as much as the server can do."""

    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrent_jobs: Amount | None = None


class LimitReached(Exception):
    """An account has used up one of its limits for now."""

    def __init__(self, limit: Limit, most: int, retry_after_s: float) -> None:
        super().__init__(f"{limit}: {most}")
        self.limit = limit
        self.most = most
        self.retry_after_s = retry_after_s


class Bucket:
    """What is left of a minute's worth."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._looked = clock()

    @property
    def remaining(self) -> int:
        return max(0, int(self._refilled()))

    @property
    def full_in_s(self) -> float:
        return self._seconds_for(self.per_minute - self._refilled())

    def wait_s(self, amount: int) -> float:
        """Seconds until there is `amount`; 0: there is."""
        return max(0.0, self._seconds_for(amount - self._refilled()))

    def take(self, amount: int) -> None:
        """Also what is not there: that is a debt."""
        self._left = self._refilled() - amount

    def _refilled(self) -> float:
        now = self._clock()
        self._left = min(float(self.per_minute), self._left + (now - self._looked) * self.per_minute / 60)
        self._looked = now
        return self._left

    def _seconds_for(self, amount: float) -> float:
        return amount * 60 / self.per_minute


class Account:
    """One holder of a key, or everybody where there are no keys."""

    def __init__(self, name: str, limits: Limits, clock: Clock = time.monotonic) -> None:
        self.name = name
        self.num_jobs = 0
        self.requests = Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self.tokens = Bucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self.most_jobs = limits.concurrent_jobs  # that may run at once; None: as many as there are

    def __repr__(self) -> str:
        return f"<Account {self.name}: {self.num_jobs} jobs>"

    def take_request(self) -> None:
        """Raises LimitReached when there were too many of late."""
        if self.requests is not None:
            self._check("requests", self.requests)
            self.requests.take(1)

    def check_jobs(self, count: int) -> None:
        """Raises LimitReached unless `count` more jobs may start now."""
        if self.most_jobs is not None and self.num_jobs + count > self.most_jobs:
            raise LimitReached("jobs", self.most_jobs, JOB_RETRY_S)
        if self.tokens is not None:
            self._check("tokens", self.tokens)

    def begin_job(self) -> None:
        self.num_jobs += 1

    def spend(self, tokens: int) -> None:
        if self.tokens is not None:
            self.tokens.take(tokens)

    def end_job(self) -> None:
        assert self.num_jobs > 0, self
        self.num_jobs -= 1

    def _check(self, limit: Limit, bucket: Bucket) -> None:
        if wait_s := bucket.wait_s(1):
            raise LimitReached(limit, bucket.per_minute, wait_s)
