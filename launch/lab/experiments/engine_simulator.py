"""The simulator held against the real engine: the same requests, at the speed that the machine had meanwhile."""

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from tqdm import tqdm

from launch.bench.load import LoadResult
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
from launch.lab.machine import Machine, capacity, find_machine, slower
from launch.lab.samples import summary
from launch.lab.workload import Request, make_requests

_SETTINGS = (Setting("fcfs"), Setting("skip-join"))
_REQUESTS = 120


class Prediction(msgspec.Struct, frozen=True):
    """On a machine `slowdown` times as slow as its profile says."""

    slowdown: float
    jct_s: float


class Pair(msgspec.Struct, frozen=True):
    """One run of a server, and its simulations: at the speed that the machine had in it, and in the run beside it."""

    setting: Setting
    round: int
    real_jct_s: float
    own: Prediction
    neighbour: Prediction


class EngineSimulator:
    """Both policies in turn. A run's speed is how long it took, over how long it takes simulated by the profile."""

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
                slowdowns = [
                    result.duration_s / simulate(setting, requests, result.samples, machine).makespan_s
                    for setting, result in zip(_SETTINGS, results, strict=True)
                ]
                for i, (setting, result) in enumerate(zip(_SETTINGS, results, strict=True)):
                    own, neighbour = (
                        Prediction(slowdown, _mean_jct_s(setting, requests, result, slower(machine, slowdown)))
                        for slowdown in (slowdowns[i], slowdowns[1 - i])
                    )
                    pairs.append(Pair(setting, turn, summary(result.samples)["mean_jct_s"], own, neighbour))
        return msgspec.to_builtins(pairs)

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        pairs = msgspec.convert(data, list[Pair])
        rows = [_row(setting, [pair for pair in pairs if pair.setting == setting]) for setting in _SETTINGS]
        head = [
            "policy",
            "JCT, s",
            "simulated, s",
            "over real, by round",
            "at the other run's speed",
            "speed, by round",
        ]
        return {"requests": str(_REQUESTS), "rounds": str(ROUNDS), "pairs": table(head, rows)}


def _mean_jct_s(setting: Setting, requests: Sequence[Request], result: LoadResult, machine: Machine) -> float:
    return simulate(setting, requests, result.samples, machine).summary()["mean_jct_s"]


def _row(setting: Setting, pairs: Sequence[Pair]) -> list[object]:
    return [
        setting.policy,
        statistics.median(pair.real_jct_s for pair in pairs),
        statistics.median(pair.own.jct_s for pair in pairs),
        _errors((pair.own, pair.real_jct_s) for pair in pairs),
        _errors((pair.neighbour, pair.real_jct_s) for pair in pairs),
        ", ".join(number(1 / pair.own.slowdown) for pair in pairs),
    ]


def _errors(pairs: Iterable[tuple[Prediction, float]]) -> str:
    return ", ".join(f"{100 * (prediction.jct_s / real_s - 1):+.0f} %" for prediction, real_s in pairs)
