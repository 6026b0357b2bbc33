"""Pipelines of 1 to 16 stages."""

from pathlib import Path

import msgspec

from common.config import Policy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.sweep import Case, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_DEPTHS = (1, 2, 4, 8, 16)
_POLICIES: tuple[Policy, ...] = ("fcfs", "skip-join")
_LOAD = 1.2


class Depth:
    name = "depth"

    def measure(self, seeds: int) -> Data:
        cases = [
            Case(
                policy=policy,
                rate=_LOAD * depth * _capacity(),
                stages=depth,
                jobs=200 * depth,
                device_share=0.0,
                seed=seed,
            )
            for seed in range(max(1, seeds // 2))
            for depth in _DEPTHS
            for policy in _POLICIES
        ]
        return msgspec.to_builtins(run_cases(cases, self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        rows = []
        for depth in _DEPTHS:
            norm = {policy: found.mean("mean_norm_s", stages=depth, policy=policy) for policy in _POLICIES}
            served = {
                policy: 200 * depth / found.mean("makespan_s", stages=depth, policy=policy) for policy in _POLICIES
            }
            rows.append([depth, *norm.values(), number(norm["fcfs"] / norm["skip-join"], "x"), *served.values()])
        head = ["stages", *(f"{policy}: s/token" for policy in _POLICIES), "fcfs / skip-join"]
        return {"figures": table([*head, *(f"{policy}: requests/s" for policy in _POLICIES)], rows)}


def _capacity() -> float:
    return capacity(PRESETS["opt-13b"], make_requests("sharegpt", 4000), 16)
