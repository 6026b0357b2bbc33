"""What an operator sees of the HTTP side: requests, tokens, waiting times.

The engine adds its own to the same registry.
"""

import collections
import time
from collections.abc import Awaitable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.accounts import Account, Clock

End = Literal["stop", "length", "tool_calls", "error", "aborted"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)


class HttpMetrics:
    """The collectors, registered once per server."""

    def __init__(self, registry: CollectorRegistry, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.requests = Counter(
            "skipjoin_http_requests", "HTTP responses by route and status.", ["route", "status"], registry=registry
        )
        self.jobs = Counter(
            "skipjoin_http_jobs", "Jobs that ended, as clients saw it.", ["endpoint", "end"], registry=registry
        )
        self.prompt_tokens = Counter(
            "skipjoin_prompt_tokens", "Tokens of admitted prompts.", ["endpoint"], registry=registry
        )
        self.completion_tokens = CompletionTokens()
        registry.register(self.completion_tokens)
        self.first_token = Histogram(
            "skipjoin_time_to_first_token_seconds",
            "From admission to a job's first token (TTFT).",
            ["endpoint"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.completion = Histogram(
            "skipjoin_job_completion_seconds",
            "From admission to a job's end (JCT); jobs that clients left are not among them.",
            ["endpoint"],
            registry=registry,
            buckets=_SECONDS,
        )

    def job(self, endpoint: str, account: Account) -> "JobMeter":
        """Begin to measure one job of `account`, admitted now."""
        return JobMeter(self, endpoint, account, self._clock)


class CompletionTokens(Collector):
    """Tokens handed to clients, counted on the event loop: without a lock, and read when somebody scrapes."""

    def __init__(self) -> None:
        self.by_endpoint: collections.Counter[str] = collections.Counter()

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("skipjoin_completion_tokens", "Tokens handed to clients.", labels=["endpoint"])
        for endpoint, count in self.by_endpoint.items():
            family.add_metric([endpoint], count)
        yield family


class JobMeter:
    """Measures one job, from its admission to its end, for the operator and for the account that pays."""

    def __init__(self, metrics: HttpMetrics, endpoint: str, account: Account, clock: Clock) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._account = account
        account.begin_job()
        self._clock = clock
        self._admitted = clock()
        self._has_tokens = False
        self._totals = metrics.completion_tokens.by_endpoint

    def tokens(self, count: int) -> None:
        """`count` more tokens came."""
        if count and not self._has_tokens:
            self._has_tokens = True
            self._metrics.first_token.labels(self._endpoint).observe(self._clock() - self._admitted)
        self._totals[self._endpoint] += count
        self._account.spend(count)

    def end(self, end: End) -> None:
        """Exactly once."""
        self._account.end_job()
        self._metrics.jobs.labels(self._endpoint, end).inc()
        if end != "aborted":
            self._metrics.completion.labels(self._endpoint).observe(self._clock() - self._admitted)


class RequestCounter:
    """Middleware that counts responses. Paths without a route are one: what strangers ask for is no label."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def count(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none").rstrip("/")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            return send(message)

        await self._app(scope, receive, count)
