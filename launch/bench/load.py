"""`skipjoin bench URL`: how an OpenAI-compatible server, ours or another, bears a load."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated

import tyro
import uvloop
from tqdm import tqdm

from common.config import ConfigError
from launch.bench.client import Client, Endpoint, RequestFailed
from launch.lab.plots import check_picture, plot_latencies
from launch.lab.samples import Sample, by_length, summary
from launch.lab.workload import Request, make_requests, read_requests

_SHOWN = (
    ("JCT", "jct", 1.0),
    ("per token", "norm", 1e3),
    ("TTFT", "ttft", 1e3),
    ("TPOT", "tpot", 1e3),
    ("gap", "gap", 1e3),
)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """All that came of a run."""

    duration_s: float
    samples: list[Sample]  # in order of the requests
    errors: list[str]
    busy_tokens_per_s: float = 0.0  # output tokens, while every client of a closed loop had a request

    @property
    def tokens_per_s(self) -> float:
        return sum(sample.output_tokens for sample in self.samples) / self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBench:
    """Measure a server under load: `skipjoin bench http://127.0.0.1:8000/v1 --rate 2`.

    Open loop with --rate: requests arrive whatever the server does. Closed loop with --concurrency: so many clients,
    each with one request at a time. JCT is until the last token, TTFT until the first, TPOT between the later ones.
    The last line of output is JSON.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Base URL of the API, with /v1."""
    rate: float | None = None
    """Requests per second, for an open loop."""
    concurrency: int | None = None
    """Clients of a closed loop. Default without --rate: 16."""
    workload: str = "mix"
    """Lengths: mix, sharegpt, alpaca, azure, zipf:EXPONENT, uniform:LEAST-MOST or ratio:PROMPT/OUTPUT."""
    trace: str | None = None
    """CSV or JSON lines with arrival, prompt and output, instead of --workload; its own times without --rate."""
    requests: int = 72
    """Number of requests."""
    cv: float = 1.0
    """Coefficient of variation of the times between arrivals; 1 is Poisson, more is burstier."""
    seed: int = 0
    """Seed of lengths, arrivals and words. Who sends the same again measures the server's prefix cache, too."""
    model: str | None = None
    """Model to ask for. Default: the first that the server lists."""
    endpoint: Endpoint = "completions"
    """API to use."""
    api_key: str | None = None
    """Key to send. Default: OPENAI_API_KEY of the environment."""
    timeout: float = 600.0
    """Seconds without a byte after which a request counts as failed."""
    output: Path | None = None
    """File for all samples, as JSON."""
    plot: Path | None = None
    """File for a picture of the latencies' distributions."""

    def run(self) -> int:
        """Raises ConfigError."""
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError("--concurrency must be at least 1")
        if self.plot is not None:
            check_picture(self.plot)
        try:
            result = uvloop.run(self._measure())
        except RequestFailed as error:
            raise ConfigError(f"{self.url} does not answer as an OpenAI API: {error}") from None
        for why in result.errors[:3]:
            print(f"failed: {why}")
        if result.samples:
            self._report(result)
        return 1 if result.errors or not result.samples else 0

    async def _measure(self) -> LoadResult:
        key = self.api_key or os.environ.get("OPENAI_API_KEY", "none")
        async with Client(self.url, endpoint=self.endpoint, api_key=key, timeout_s=self.timeout) as client:
            await client.prepare(self.model)
            with tqdm(total=self.requests, unit="req") as bar:
                load = Load(client, self._requests(), self.seed, bar.update)
                if self.rate is None and self.trace is None:
                    return await load.closed_loop(self.concurrency or 16)
                return await load.open_loop()

    def _requests(self) -> list[Request]:
        if self.trace is not None:
            return read_requests(self.trace, self.requests, self.rate)
        return make_requests(self.workload, self.requests, 1.0 if self.rate is None else self.rate, self.cv, self.seed)

    def _report(self, result: LoadResult) -> None:
        classes = {"all": result.samples, **by_length(result.samples)}
        summaries = {name: summary(samples) for name, samples in classes.items()}
        print(f"{'':>16} {'n':>5}" + "".join(f"{label + ' mean':>15} {'P95':>8}" for label, *_ in _SHOWN))
        for name, numbers in summaries.items():
            cells = (
                f"{factor * numbers[f'mean_{key}_s']:15.3g} {factor * numbers[f'p95_{key}_s']:8.3g}"
                for _, key, factor in _SHOWN
            )
            print(f"{name:>16} {len(classes[name]):5d}" + "".join(cells))
        print("JCT in s, the others in ms")
        print(f"{result.tokens_per_s:.1f} output tokens/s, {len(result.samples) / result.duration_s:.2f} requests/s")
        if self.output is not None:
            self.output.write_text(json.dumps([asdict(sample) for sample in result.samples]))
        if self.plot is not None:
            plot_latencies(result.samples, self.plot)
        numbers = {"requests": len(result.samples), "failed": len(result.errors), "duration_s": result.duration_s}
        rates = {"tokens_per_s": result.tokens_per_s, "requests_per_s": len(result.samples) / result.duration_s}
        print(
            json.dumps(
                {"bench": "load", "url": self.url, **numbers, **rates, **summaries.pop("all"), "by_length": summaries}
            )
        )


class Load:
    """Requests for a server, to be sent once."""

    def __init__(
        self,
        client: Client,
        requests: Sequence[Request],
        seed: int | str = 0,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """`progress` is called as each request ends.

        seed: of the words. Loads of one seed begin alike, and a server may have those prompts in its prefix cache.
        """
        self._client = client
        self._requests = requests
        self._seed = seed
        self._progress = progress
        self._start_s = 0.0
        self._samples: dict[int, Sample] = {}
        self._events: dict[int, int] = {}  # with text, of every answer so far
        self._errors: list[str] = []

    async def open_loop(self) -> LoadResult:
        """Send each request at its arrival time, however many are still running."""
        self._start_s = time.perf_counter()
        await asyncio.gather(*(self._at_its_time(index) for index in range(len(self._requests))))
        return self._result()

    async def closed_loop(self, concurrency: int) -> LoadResult:
        """Let `concurrency` clients work the requests off, each one at a time."""
        self._start_s = time.perf_counter()
        queue = iter(range(len(self._requests)))
        ends: list[tuple[float, dict[int, int]]] = []  # when clients found no more to do, and what had come

        async def work_off() -> None:
            for index in queue:
                await self._send(index)
            ends.append((time.perf_counter() - self._start_s, dict(self._events)))

        await asyncio.gather(*(work_off() for _ in range(concurrency)))
        busy_s, events = ends[0]
        return replace(self._result(), busy_tokens_per_s=self._tokens_in(events) / busy_s)

    async def _at_its_time(self, index: int) -> None:
        await asyncio.sleep(max(0.0, self._start_s + self._requests[index].arrival_s - time.perf_counter()))
        await self._send(index)

    async def _send(self, index: int) -> None:
        request = self._requests[index]
        prompt = self._client.prompt(Random(f"{self._seed}/{index}"), request.prompt_tokens)

        def came(events: int) -> None:
            self._events[index] = events

        try:
            self._samples[index] = await self._client.complete(prompt, request.output_tokens, came)
        except RequestFailed as failure:
            self._errors.append(str(failure))
        self._progress()

    def _tokens_in(self, events: dict[int, int]) -> float:
        """Output tokens in the first so many events of answers that have ended: servers may put several into one."""
        return sum(
            sample.output_tokens * events.get(index, 0) / self._events[index] for index, sample in self._samples.items()
        )

    def _result(self) -> LoadResult:
        samples = [sample for _, sample in sorted(self._samples.items())]
        return LoadResult(time.perf_counter() - self._start_s, samples, self._errors)
