"""The simulator held against the real engine: the same requests, at the speed that the machine had meanwhile."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tqdm import tqdm

from launch.lab.experiments.engine import (
    BATCH,
    OVERLOAD,
    ROUNDS,
    WORKLOAD,
    Setting,
    measure_profile,
    measured_slowdown,
    run_server,
    simulate,
)
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import capacity, find_machine, slower
from launch.lab.samples import summary
from launch.lab.workload import make_requests

_SETTINGS = (Setting("fcfs"), Setting("skip-join"))
_REQUESTS = 120


class Pair(msgspec.Struct, frozen=True):
    """One run of a server, and its simulation on a machine `slowdown` times as slow as its profile says."""

    setting: Setting
    round: int
    slowdown: float
    real_jct_s: float
    simulated_jct_s: float


class EngineSimulator:
    """Each policy is simulated at the speed that the machine had in the other one's run of the same round."""

    name = "engine-simulator"

    def measure(self, seeds: int) -> Data:
        """`seeds` does not matter: there are three rounds, each with requests of its own."""
        machine = find_machine(measure_profile())
        served = capacity(slower(machine, measured_slowdown(machine)), make_requests(WORKLOAD, 4000), BATCH)
        pairs: list[Pair] = []
        with tqdm(total=ROUNDS * len(_SETTINGS), desc=self.name) as bar:
            for turn in range(ROUNDS):
                requests = make_requests(WORKLOAD, _REQUESTS, OVERLOAD * served, seed=turn)
                results = []
                for setting in _SETTINGS:
                    results.append(run_server(setting, requests, Path(os.devnull))[0])
                    bar.update()
                speeds = [
                    result.duration_s / simulate(setting, requests, result.samples, machine).makespan_s
                    for setting, result in zip(_SETTINGS, results, strict=True)
                ]
                for setting, result, slowdown in zip(_SETTINGS, results, reversed(speeds), strict=True):
                    simulated = simulate(setting, requests, result.samples, slower(machine, slowdown)).summary()
                    real = summary(result.samples)
                    pairs.append(Pair(setting, turn, slowdown, real["mean_jct_s"], simulated["mean_jct_s"]))
        return msgspec.to_builtins(pairs)

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        pairs = msgspec.convert(data, list[Pair])
        rows = [_row(setting, [pair for pair in pairs if pair.setting == setting]) for setting in _SETTINGS]
        head = ["policy", "JCT, s", "simulated, s", "simulated over real, by round", "speed of the machine, by round"]
        return {"requests": str(_REQUESTS), "rounds": str(ROUNDS), "pairs": table(head, rows)}


def _row(setting: Setting, pairs: Sequence[Pair]) -> list[object]:
    return [
        setting.policy,
        statistics.median(pair.real_jct_s for pair in pairs),
        statistics.median(pair.simulated_jct_s for pair in pairs),
        ", ".join(f"{100 * (pair.simulated_jct_s / pair.real_jct_s - 1):+.0f} %" for pair in pairs),
        ", ".join(number(1 / pair.slowdown) for pair in pairs),
    ]
