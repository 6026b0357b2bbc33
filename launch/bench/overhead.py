"""What Skipjoin adds to the model: time before a token, time in which no stage computes, processor time."""

import json
import statistics
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

import uvloop
from tqdm import tqdm

from common.config import Stored
from launch.bench.client import Client
from launch.bench.load import Load
from launch.bench.metrics import increase, read_metrics
from launch.bench.server import serving
from launch.lab.workload import Request, make_requests

_PROMPT = "Name a colour that you like, and say in a few words why."
_WARM_UP = [Request(0.0, 100, 24)] * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadBench:
    """Measure what a server adds to its model.

    First requests for one token, one after the other: what a client waits beyond the time that the stage computed. Then
    a closed loop: how long iterations are, in what share of them the last stage computes, what the scheduler and the
    gateway take.
    """

    model: str | None = None
    """Model as for `serve`. Default: the embedded one."""
    requests: int = 30
    """Requests for a single token; the median counts."""
    clients: int = 16
    """Clients of the closed loop."""
    load: int = 64
    """Requests of the closed loop: 80 % short, 20 % long."""
    weights: Stored = "exact"
    """How matrices are kept, as for `serve`."""
    pipeline_parallel: int = 1
    """Number of pipeline stages, as for `serve`."""

    def run(self) -> int:
        options = [self.model] if self.model else []
        options += ["--weights", self.weights, "--pipeline-parallel", str(self.pipeline_parallel)]
        # Without the prefix cache: every request for one token computes its whole prompt.
        with serving([*options, "--no-prefix-cache"]) as url:
            figures = uvloop.run(self._measure(url))
        share = figures["scheduling_ms"] / figures["iteration_ms"]
        print(f"one token: {figures['first_token_ms']:.1f} ms, {figures['beyond_compute_ms']:.2f} ms beyond computing")
        print(f"{self.clients} clients: {figures['tokens_per_s']:.1f} tok/s")
        print(f"  an iteration takes {figures['iteration_ms']:.1f} ms")
        print(f"  the last stage computes for {100 * figures['compute_share']:.1f} % of it")
        print(f"  the scheduler takes {figures['scheduling_ms']:.2f} ms of it, {100 * share:.2f} %")
        print(f"  the gateway uses {figures['gateway_us_per_token']:.0f} µs of processor time for a token")
        print(json.dumps({"bench": "overhead", "clients": self.clients, **figures}))
        return 0

    async def _measure(self, url: str) -> dict[str, float]:
        async with Client(url) as client:
            await client.prepare()
            await Load(client, _WARM_UP, seed=1).closed_loop(4)
            total_s, computing_s = self._first_tokens(url)
            before = read_metrics(url)
            with tqdm(total=self.load, desc=f"{self.clients} clients", leave=False) as bar:
                result = await Load(client, make_requests("mix", self.load), 0, bar.update).closed_loop(self.clients)
            added = increase(before, read_metrics(url))
        iterations, busy_s = added["skipjoin_iterations_total"], added["skipjoin_busy_seconds_total"]
        return {
            "first_token_ms": 1e3 * statistics.median(total_s),
            "beyond_compute_ms": 1e3
            * statistics.median(total - computing for total, computing in zip(total_s, computing_s, strict=True)),
            "tokens_per_s": result.tokens_per_s,
            "iteration_ms": 1e3 * busy_s / iterations,
            "compute_share": added["skipjoin_compute_seconds_total"] / busy_s,
            "scheduling_ms": 1e3 * added["skipjoin_scheduling_seconds_total"] / iterations,
            "gateway_us_per_token": 1e6
            * added["process_cpu_seconds_total"]
            / sum(sample.output_tokens for sample in result.samples),
        }

    def _first_tokens(self, url: str) -> tuple[list[float], list[float]]:
        """Seconds until the only token of each request, and those of them in which the last stage computed."""
        address = urlsplit(url)
        assert address.hostname is not None
        connection = HTTPConnection(address.hostname, address.port)
        total_s, computing_s = [], []
        for _ in tqdm(range(self.requests), desc="one token", leave=False):
            before = read_metrics(url)
            total_s.append(_first_token_s(connection, f"{address.path}/completions"))
            computing_s.append(increase(before, read_metrics(url))["skipjoin_compute_seconds_total"])
        connection.close()
        return total_s, computing_s


def _first_token_s(connection: HTTPConnection, path: str) -> float:
    """By the plainest of clients, so that little of it is the client's."""
    body = json.dumps({"prompt": _PROMPT, "max_tokens": 1, "temperature": 0, "stream": True})
    start = time.perf_counter()
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {"), response.status
    seconds = time.perf_counter() - start
    response.read()
    return seconds
