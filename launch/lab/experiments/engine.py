"""The real engine: policies and KV strategies on real tokens, interleaved, and the simulator held against them."""

import asyncio
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import msgspec
from tqdm import tqdm

from common.config import Config, KvStrategy, Policy
from gateway.recording import read_recording
from launch.bench.client import Client
from launch.bench.load import Load, LoadResult
from launch.bench.server import serving
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import capacity, find_machine
from launch.lab.samples import Sample, summary
from launch.lab.simulator import Simulation
from launch.lab.timeline import Span, draw_timelines, lives
from launch.lab.workload import Request, make_requests

_WORKLOAD = "sharegpt:0.25"
_REQUESTS = 72
_BATCH = 8
_DEVICE_BLOCKS = 48  # about eight contexts in the middle of their lives
_HOST_BLOCKS = 4000
_ROUNDS = 3
_OVERLOAD = 1.5
_OPTIONS = [
    *("--max-batch-jobs", str(_BATCH), "--max-waiting-jobs", "10000"),
    *("--kv-device-blocks", str(_DEVICE_BLOCKS), "--kv-host-blocks", str(_HOST_BLOCKS)),
]


class Setting(msgspec.Struct, frozen=True):
    """What a server is started with, and the load that it gets."""

    policy: Policy
    kv_strategy: KvStrategy
    load: float


_OVERLOADED = (
    Setting("fcfs", "proactive", _OVERLOAD),
    Setting("skip-join", "proactive", _OVERLOAD),
    Setting("skip-join", "reactive", _OVERLOAD),
    Setting("skip-join", "recompute", _OVERLOAD),
    Setting("skip-join", "defer", _OVERLOAD),
)
_EASY = (Setting("fcfs", "proactive", 0.7), Setting("skip-join", "proactive", 0.7))  # measured once
_SETTINGS = (*_OVERLOADED, *_EASY)


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
    """All runs, and for a picture the jobs' lives in the last round's overload under two policies."""

    runs: list[Run]
    lives: dict[str, list[Span]]


class Engine:
    name = "engine"

    def measure(self, seeds: int) -> Data:
        """`seeds` does not matter: there are three interleaved rounds, each with requests of its own."""
        profile = _profile()
        machine = find_machine(profile)
        full = capacity(machine, make_requests(_WORKLOAD, 4000), _BATCH)
        runs: list[Run] = []
        of_jobs: dict[str, list[Span]] = {}
        turns = [(turn, setting) for turn in range(_ROUNDS) for setting in _OVERLOADED] + [(0, s) for s in _EASY]
        with TemporaryDirectory() as folder:
            for turn, setting in tqdm(turns, desc=self.name):
                requests = make_requests(_WORKLOAD, _REQUESTS, setting.load * full, seed=turn)
                record = Path(folder) / f"{len(runs)}.jsonl"
                result, stall_share = _run(setting, requests, record)
                simulated = _simulate(setting, requests, result.samples, profile)
                figures = summary(result.samples)
                runs.append(
                    Run(setting, turn, setting.load * full, figures, result.tokens_per_s, stall_share, simulated)
                )
                if setting in _OVERLOADED[:2]:
                    of_jobs[setting.policy] = lives(read_recording(record))
        return msgspec.to_builtins(Recorded(runs, of_jobs))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = msgspec.convert(data, Recorded)
        draw_timelines(found.lives, pictures / f"{self.name}.png")
        of = {setting: [run for run in found.runs if run.setting == setting] for setting in _SETTINGS}
        fcfs, skip = (of[setting] for setting in _SETTINGS[:2])
        gains = [
            slow.figures["mean_norm_s"] / fast.figures["mean_norm_s"] for slow, fast in zip(fcfs, skip, strict=True)
        ]
        errors = {
            s: _median(runs, lambda run: run.simulated["mean_jct_s"] / run.figures["mean_jct_s"] - 1)
            for s, runs in of.items()
        }
        return {
            "rate": number(fcfs[0].rate),
            "requests": str(_REQUESTS),
            "rounds": str(_ROUNDS),
            "runs": table(_HEAD, [_row(setting, runs) for setting, runs in of.items()]),
            "gain": number(statistics.median(gains)),
            "gains": ", ".join(number(gain) for gain in gains),
            "simulations": table(
                ["policy", "KV strategy", "load", "JCT, s", "simulated, s", "simulated over real, medians"],
                [[*_names(s), *_pair(runs), f"{100 * errors[s]:+.0f} %"] for s, runs in of.items()],
            ),
        }


_HEAD = [
    "policy",
    "KV strategy",
    "load",
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
    return [*_names(setting), *figures, rate, number(100 * stalled, " %")]


def _names(setting: Setting) -> tuple[str, str, float]:
    return setting.policy, setting.kv_strategy, setting.load


def _pair(runs: list[Run]) -> tuple[float, float]:
    return _median(runs, lambda run: run.figures["mean_jct_s"]), _median(runs, lambda run: run.simulated["mean_jct_s"])


def _median(runs: Sequence[Run], pick: Callable[[Run], float]) -> float:
    return statistics.median(map(pick, runs))


def _run(setting: Setting, requests: Sequence[Request], record: Path) -> tuple[LoadResult, float]:
    """What the clients of a server of its own saw, and the share of its busy time that it waited for copies."""
    options = ["--policy", setting.policy, "--kv-strategy", setting.kv_strategy, "--record", str(record), *_OPTIONS]
    with serving(options) as url:
        before = _stalled_and_busy_s(url)
        result = asyncio.run(_load(url, requests))
        after = _stalled_and_busy_s(url)
    assert not result.errors, result.errors[0]
    return result, (after[0] - before[0]) / (after[1] - before[1])


async def _load(url: str, requests: Sequence[Request]) -> LoadResult:
    async with Client(url) as client:
        await client.prepare()
        return await Load(client, requests).open_loop()


def _stalled_and_busy_s(url: str) -> tuple[float, float]:
    with urlopen(url.removesuffix("/v1") + "/metrics") as response:
        metrics = response.read().decode()
    stalled, busy = (
        re.search(rf"^skipjoin_{name}_seconds_total (\S+)$", metrics, re.MULTILINE) for name in ("stalled", "busy")
    )
    assert stalled is not None
    assert busy is not None
    return float(stalled[1]), float(busy[1])


def _simulate(
    setting: Setting, requests: Sequence[Request], samples: Sequence[Sample], profile: str
) -> dict[str, float]:
    """The same requests, with the lengths that they really had, on the machine as `skipjoin profile` measured it."""
    real = [
        Request(request.arrival_s, sample.prompt_tokens, sample.output_tokens)
        for request, sample in zip(requests, samples, strict=True)
    ]
    config = Config(
        policy=setting.policy,
        kv_strategy=setting.kv_strategy,
        max_batch_jobs=_BATCH,
        kv_device_blocks=_DEVICE_BLOCKS,
        kv_host_blocks=_HOST_BLOCKS,
    )
    return Simulation(config, find_machine(profile), real).run().summary()


def _profile() -> str:
    """The file in which the profile of such a server is kept, measured now."""
    command = [sys.executable, "-m", "launch", "profile", "--profile", "measure", *_OPTIONS]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^kept in (.+)$", said, re.MULTILINE)
    assert found is not None, said
    return found[1]
