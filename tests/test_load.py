import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes_gateway import FakeEngine, serving

from launch.bench.client import Client
from launch.bench.load import Load, LoadResult
from launch.cli import main
from launch.lab.samples import Sample
from launch.lab.workload import Request

REQUESTS = [Request(0.01 * index, 5, 3 + index) for index in range(6)]


def measure(
    engine: FakeEngine, run: Callable[[Load], object], progress: Callable[[], object] = lambda: None
) -> LoadResult:
    async def use(url: str) -> LoadResult:
        async with Client(f"{url}/v1") as client:
            await client.prepare()
            return await run(Load(client, REQUESTS, progress=progress))  # type: ignore[misc,no-any-return]

    with serving(engine) as url:
        return asyncio.run(use(url))


def test_an_open_loop_sends_every_request_once_and_keeps_their_order() -> None:
    ended: list[int] = []
    result = measure(FakeEngine("abc"), Load.open_loop, lambda: ended.append(1))
    assert [sample.output_tokens for sample in result.samples] == [3, 4, 5, 6, 7, 8]
    assert len(ended) == 6
    assert result.errors == []
    assert result.duration_s >= REQUESTS[-1].arrival_s


def test_a_closed_loop_never_has_more_requests_at_a_time_than_clients() -> None:
    engine = FakeEngine("abc")
    most = 0

    def script(job: object) -> list[int]:
        nonlocal most
        running = sum(not stream.aborted.is_set() for stream in engine.streams[-2:])
        most = max(most, running)
        return [97] * 20

    engine.script = script  # type: ignore[assignment]
    result = measure(engine, lambda load: load.closed_loop(2))
    assert len(result.samples) == 6
    assert most <= 2


def test_failures_are_counted_and_do_not_end_the_run() -> None:
    engine = FakeEngine("abc")

    def run(load: Load) -> object:
        engine.fails = True
        return load.open_loop()

    result = measure(engine, run)
    assert len(result.errors) == 6
    assert result.samples == []


def test_the_command_takes_a_url_and_ends_with_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(FakeEngine("abc", max_context=5000)) as url:
        options = ["--requests", "8", "--concurrency", "3", "--workload", "uniform:4-40"]
        files = ["--output", str(tmp_path / "samples.json"), "--plot", str(tmp_path / "plot.svg")]
        assert main(["bench", f"{url}/v1", *options, *files]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["bench"] == "load"
    assert figures["requests"] == 8
    assert figures["failed"] == 0
    assert set(figures) >= {"mean_jct_s", "p95_norm_s", "p99_ttft_s", "mean_tpot_s", "p95_gap_s", "tokens_per_s"}
    assert len(json.loads((tmp_path / "samples.json").read_text())) == 8
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "127.0.0.1:9/v1"])
def test_a_url_that_does_not_answer_is_a_mistake_of_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "load", url]) == 2
    assert "does not answer" in capsys.readouterr().err


class UnevenClient:
    """Takes a second for each short answer, by a clock of its own, and gives those to long requests last."""

    def __init__(self) -> None:
        self.now = 0.0
        self._short_ones = 2
        self._all_ended = asyncio.Event()

    def prompt(self, random: object, tokens: int) -> str:
        return ""

    async def complete(self, prompt: str, tokens: int, progress: Callable[[int], None]) -> Sample:
        progress(1)
        if tokens > 1:  # two tokens to an event
            progress(25)
            await self._all_ended.wait()
            progress(50)
        self.now += 1.0
        self._short_ones -= 1
        if not self._short_ones:
            asyncio.get_running_loop().call_soon(self._all_ended.set)
        return Sample(1, tokens, 1.0, 1.0)


def test_a_closed_loop_tells_what_was_served_while_all_clients_were_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured() -> LoadResult:
        client = UnevenClient()
        monkeypatch.setattr("launch.bench.load.time.perf_counter", lambda: client.now)
        return await Load(client, [Request(0.0, 1, tokens) for tokens in (100, 1, 1)]).closed_loop(2)  # type: ignore[arg-type]

    result = asyncio.run(measured())
    assert result.busy_tokens_per_s == (1 + 1 + 50) / 2.0
    assert len(result.samples) == 3
    assert result.duration_s == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--concurrency", "0"], "--concurrency"), (["--rate", "0"], "0 a second"), (["--plot", "x.xyz"], "picture")],
)
def test_what_cannot_be_measured_is_refused_before(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with serving(FakeEngine("abc")) as url:
        assert main(["bench", f"{url}/v1", *options]) == 2
    assert message in capsys.readouterr().err
