"""The real engine: policies and KV strategies on real tokens, interleaved, and the simulator held against them."""

import os
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import uvloop
from tqdm import tqdm

from common.config import Config, KvStrategy, Policy
from gateway.recording import read_recording
from launch.bench.client import Client
from launch.bench.load import Load, LoadResult
from launch.bench.metrics import increase, read_metrics
from launch.bench.server import serving
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import Machine, capacity, find_machine, slower
from launch.lab.samples import Sample, summary
from launch.lab.simulator import Simulated, Simulation
from launch.lab.timeline import Span, draw_timelines, lives
from launch.lab.workload import Request, make_requests
from launch.mpiexec import SKIPJOIN

WORKLOAD = "sharegpt:0.25"
BATCH = 8
_DEVICE_BLOCKS = 48  # about eight contexts in the middle of their lives
_HOST_BLOCKS = 4000
ROUNDS = 3
OVERLOAD = 1.5
_OPTIONS = [
    *("--max-batch-jobs", str(BATCH), "--max-waiting-jobs", "10000"),
    *("--kv-device-blocks", str(_DEVICE_BLOCKS), "--kv-host-blocks", str(_HOST_BLOCKS)),
]
_CALIBRATION = 48  # requests, all at once
_CALIBRATION_SEED = 1000


class Setting(msgspec.Struct, frozen=True):
    """What a server is started with."""

    policy: Policy
    kv_strategy: KvStrategy = "proactive"


class Run(msgspec.Struct, frozen=True):
    """One run of one server, and the simulation of the same requests."""

    setting: Setting
    round: int
    rate: float
    figures: dict[str, float]
    tokens_per_s: float
    stall_share: float
    simulated: dict[str, float]


class Recorded(msgspec.Struct, frozen=True):
    """All runs, and for a picture the jobs' lives in the last round."""

    requests: int
    slowdown: float  # of a server with clients beside it, over the profile of an idle one
    runs: list[Run]
    lives: dict[str, list[Span]]


class Engine:
    """Servers with different settings under the same overload, in interleaved rounds."""

    def __init__(self, name: str, settings: Sequence[Setting], requests: int, *, pictured: bool = False) -> None:
        self.name = name
        self._pictured = pictured
        self._settings = settings
        self._requests = requests

    def measure(self, seeds: int) -> Data:
        """`seeds` does not matter: there are three rounds, each with requests of its own."""
        profiled = find_machine(measure_profile())
        slowdown = measured_slowdown(profiled)
        machine = slower(profiled, slowdown)
        rate = OVERLOAD * capacity(machine, make_requests(WORKLOAD, 4000), BATCH)
        runs: list[Run] = []
        of_jobs: dict[str, list[Span]] = {}
        turns = [(turn, setting) for turn in range(ROUNDS) for setting in self._settings]
        with TemporaryDirectory() as folder:
            for turn, setting in tqdm(turns, desc=self.name):
                requests = make_requests(WORKLOAD, self._requests, rate, seed=turn)
                record = Path(folder) / f"{len(runs)}.jsonl"
                result, stall_share = run_server(setting, requests, record)
                simulated = simulate(setting, requests, result.samples, machine).summary()
                figures = summary(result.samples)
                runs.append(Run(setting, turn, rate, figures, result.tokens_per_s, stall_share, simulated))
                if self._pictured:
                    of_jobs[f"{setting.policy}, {setting.kv_strategy}"] = lives(read_recording(record))
        return msgspec.to_builtins(Recorded(self._requests, slowdown, runs, of_jobs))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = msgspec.convert(data, Recorded)
        if self._pictured:
            draw_timelines(found.lives, pictures / f"{self.name}.png")
        of = {setting: [run for run in found.runs if run.setting == setting] for setting in self._settings}
        first, second = (of[setting] for setting in self._settings[:2])
        gains = [a.figures["mean_norm_s"] / b.figures["mean_norm_s"] for a, b in zip(first, second, strict=True)]
        return {
            "rate": number(found.runs[0].rate),
            "requests": str(found.requests),
            "arrivals": f"{found.requests / found.runs[0].rate:.0f} seconds",
            "rounds": str(ROUNDS),
            "slowdown": number(found.slowdown),
            "runs": table(_HEAD, [_row(setting, runs) for setting, runs in of.items()]),
            "gain": number(statistics.median(gains)),
            "gains": ", ".join(number(gain) for gain in gains),
            "simulations": table(
                ["policy", "KV strategy", "JCT, s", "simulated, s", "simulated over real, round by round"],
                [[s.policy, s.kv_strategy, *_pair(runs), _errors(runs)] for s, runs in of.items()],
            ),
        }


def _errors(runs: Sequence[Run]) -> str:
    ratios = [run.simulated["mean_jct_s"] / run.figures["mean_jct_s"] for run in runs]
    return ", ".join(f"{100 * (ratio - 1):+.0f} %" for ratio in ratios)


POLICIES = Engine("engine", (Setting("fcfs"), Setting("skip-join")), 360, pictured=True)
STRATEGIES = Engine(
    "engine-memory",
    tuple(Setting("skip-join", strategy) for strategy in ("proactive", "reactive", "recompute", "defer")),
    72,
)

_HEAD = [
    "policy",
    "KV strategy",
    "s/token",
    "P95 s/token",
    "JCT, s",
    "P99 JCT, s",
    "TTFT, s",
    "tokens/s",
    "stalled",
]


def _row(setting: Setting, runs: list[Run]) -> list[object]:
    names = ("mean_norm_s", "p95_norm_s", "mean_jct_s", "p99_jct_s", "mean_ttft_s")
    figures = [statistics.median(run.figures[name] for run in runs) for name in names]
    rate, stalled = _median(runs, lambda run: run.tokens_per_s), _median(runs, lambda run: run.stall_share)
    return [setting.policy, setting.kv_strategy, *figures, rate, number(100 * stalled, " %")]


def _pair(runs: list[Run]) -> tuple[float, float]:
    return _median(runs, lambda run: run.figures["mean_jct_s"]), _median(runs, lambda run: run.simulated["mean_jct_s"])


def _median(runs: Sequence[Run], pick: Callable[[Run], float]) -> float:
    return statistics.median(map(pick, runs))


def run_server(setting: Setting, requests: Sequence[Request], record: Path) -> tuple[LoadResult, float]:
    """What the clients of a server of its own saw, and the share of its busy time that it waited for copies."""
    options = ["--policy", setting.policy, "--kv-strategy", setting.kv_strategy, "--record", str(record), *_OPTIONS]
    with serving(options) as url:
        before = read_metrics(url)
        result = uvloop.run(_load(url, requests))
        added = increase(before, read_metrics(url))
    assert not result.errors, result.errors[0]
    return result, added["skipjoin_stalled_seconds_total"] / added["skipjoin_busy_seconds_total"]


async def _load(url: str, requests: Sequence[Request]) -> LoadResult:
    async with Client(url) as client:
        await client.prepare()
        return await Load(client, requests).open_loop()


def simulate(setting: Setting, requests: Sequence[Request], samples: Sequence[Sample], machine: Machine) -> Simulated:
    """The same requests, with the lengths that they really had."""
    real = [
        Request(request.arrival_s, sample.prompt_tokens, sample.output_tokens)
        for request, sample in zip(requests, samples, strict=True)
    ]
    config = Config(
        policy=setting.policy,
        kv_strategy=setting.kv_strategy,
        max_batch_jobs=BATCH,
        kv_device_blocks=_DEVICE_BLOCKS,
        kv_host_blocks=_HOST_BLOCKS,
    )
    return Simulation(config, machine, real).run()


def measured_slowdown(machine: Machine) -> float:
    """How many times as long as simulated a server takes for requests that all come at once.

    The profile is that of an idle server; while it serves, gateway and clients share its cores.
    """
    setting = Setting("fcfs")
    requests = [replace(r, arrival_s=0.0) for r in make_requests(WORKLOAD, _CALIBRATION, seed=_CALIBRATION_SEED)]
    ratios = []
    for _ in range(ROUNDS):
        result, _ = run_server(setting, requests, Path(os.devnull))
        ratios.append(result.duration_s / simulate(setting, requests, result.samples, machine).makespan_s)
    return statistics.median(ratios)


def measure_profile() -> str:
    """The file in which the profile of such a server is kept, measured now."""
    command = [*SKIPJOIN, "profile", "--profile", "measure", *_OPTIONS]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^kept in (.+)$", said, re.MULTILINE)
    assert found is not None, said
    return found[1]
