"""What Skipjoin adds to the model: time before a token, time in which no stage computes, processor time."""

import json
import statistics
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import uvloop
from tqdm import tqdm

from common.config import Stored
from launch.bench.client import Client
from launch.bench.load import Load, LoadResult
from launch.bench.metrics import increase, read_metrics
from launch.bench.server import serving
from launch.lab.workload import Request, make_requests

_PROMPT = "Name a colour that you like, and say in a few words why."
_WARM_UP = [Request(0.0, 100, 24)] * 8
# Closed loops that differ in what the gateway works for: few tokens in an iteration, many requests, many tokens.
_COST_LOOPS = [(2, 8, 96), (16, 128, 8), (16, 64, 96)]  # clients, requests, output tokens of each
_COST_PROMPT = 64
_COSTS = ("request", "iteration", "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadBench:
    """Measure what a server adds to its model.

    First requests for one token, one after the other: what a client waits beyond the time that the stage computed. Then
    a closed loop: how long iterations are, in what share of them the last stage computes, what the scheduler and the
    gateway take. Last some loops that tell what of the gateway's time is for requests, iterations and tokens.
    """

    model: str | None = None
    """Model as for `serve`. Default: the embedded one."""
    requests: int = 30
    """Requests for a single token; the median counts."""
    clients: int = 16
    """Clients of the closed loop."""
    load: int = 64
    """Requests of the closed loop, several for each client: 80 % short, 20 % long."""
    weights: Stored = "exact"
    """How matrices are kept, as for `serve`."""
    pipeline_parallel: int = 1
    """Number of pipeline stages, as for `serve`."""
    costs: bool = True
    """Tell the gateway's costs apart."""

    def run(self) -> int:
        options = [self.model] if self.model else []
        options += ["--weights", self.weights, "--pipeline-parallel", str(self.pipeline_parallel)]
        # Without the prefix cache: every request for one token computes its whole prompt.
        with serving([*options, "--no-prefix-cache"]) as url:
            figures = uvloop.run(self._measure(url))
        share = figures["scheduling_ms"] / figures["iteration_ms"]
        print(f"one token: {figures['first_token_ms']:.1f} ms, {figures['beyond_compute_ms']:.2f} ms beyond computing")
        print(f"{self.clients} clients: {figures['busy_tokens_per_s']:.1f} tok/s while all of them were busy")
        print(f"  an iteration takes {figures['iteration_ms']:.1f} ms")
        print(f"  the last stage computes for {100 * figures['compute_share']:.1f} % of it")
        print(f"  the scheduler takes {figures['scheduling_ms']:.2f} ms of it, {100 * share:.2f} %")
        print(f"  the gateway uses {figures['gateway_us_per_token']:.0f} µs of processor time for a token, all in all")
        if self.costs:
            each = (f"{figures[f'gateway_us_of_{what}']:.0f} µs for each {what}" for what in _COSTS)
            print(f"  {', '.join(each)}")
        print(json.dumps({"bench": "overhead", "clients": self.clients, **figures}))
        return 0

    async def _measure(self, url: str) -> dict[str, float]:
        async with Client(url) as client:
            await client.prepare()
            await Load(client, _WARM_UP, "warm-up").closed_loop(4)
            total_s, computing_s = self._first_tokens(url)
            with tqdm(total=self.load, desc=f"{self.clients} clients", leave=False) as bar:
                load = Load(client, make_requests("mix", self.load), "load", bar.update)
                result, added = await _counted(url, load, self.clients)
            costs = await self._gateway_costs(client, url) if self.costs else {}
        iterations, busy_s = added["skipjoin_iterations_total"], added["skipjoin_busy_seconds_total"]
        return {
            "first_token_ms": 1e3 * statistics.median(total_s),
            "beyond_compute_ms": 1e3
            * statistics.median(total - computing for total, computing in zip(total_s, computing_s, strict=True)),
            "busy_tokens_per_s": result.busy_tokens_per_s,
            "iteration_ms": 1e3 * busy_s / iterations,
            "compute_share": added["skipjoin_compute_seconds_total"] / busy_s,
            "scheduling_ms": 1e3 * added["skipjoin_scheduling_seconds_total"] / iterations,
            "gateway_us_per_token": 1e6 * added["process_cpu_seconds_total"] / _tokens(result),
            **costs,
        }

    async def _gateway_costs(self, client: Client, url: str) -> dict[str, float]:
        """What the closed loops of `_COST_LOOPS` say; that of many clients is no help: each token costs more there."""
        loops = []
        for seed, (clients, requests, tokens) in enumerate(tqdm(_COST_LOOPS, desc="costs", leave=False)):
            load = Load(client, [Request(0.0, _COST_PROMPT, tokens)] * requests, seed)
            loops.append(await _counted(url, load, clients))
        return _shared_out(loops)

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


async def _counted(url: str, load: Load, clients: int) -> tuple[LoadResult, dict[str, float]]:
    """A closed loop, and what the server's metrics gained by it."""
    before = read_metrics(url)
    result = await load.closed_loop(clients)
    return result, increase(before, read_metrics(url))


def _tokens(result: LoadResult) -> int:
    return sum(sample.output_tokens for sample in result.samples)


def _shared_out(loops: list[tuple[LoadResult, dict[str, float]]]) -> dict[str, float]:
    """Processor time of the gateway for each request, iteration and token, by loops that differ in all of them.

    Looks for results count as the iterations' own. On a noisy machine the smallest of the three can come out below 0.
    """
    worked_for = [(len(result.samples), added["skipjoin_iterations_total"], _tokens(result)) for result, added in loops]
    seconds = [added["process_cpu_seconds_total"] for _, added in loops]
    costs, *_ = np.linalg.lstsq(np.array(worked_for, dtype=float), np.array(seconds), rcond=None)
    return {f"gateway_us_of_{what}": 1e6 * float(cost) for what, cost in zip(_COSTS, costs, strict=True)}


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
