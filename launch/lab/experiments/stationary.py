"""Steady load below capacity: where there is little to win, and who pays."""

from pathlib import Path

import msgspec

from common.config import Policy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.sweep import Case, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_LOADS = (0.7, 0.8, 0.9, 0.95)
_POLICIES: tuple[Policy, ...] = ("fcfs", "mlfq", "skip-join", "srpt")
_JOBS = 2000
_SHOWN = {"mean_norm_s": "s/token", "mean_jct_s": "JCT, s", "p99_jct_s": "P99 JCT, s", "mean_ttft_s": "TTFT, s"}


class Stationary:
    name = "stationary"

    def measure(self, seeds: int) -> Data:
        full = capacity(PRESETS["opt-13b"], make_requests("sharegpt", 4000), 16)
        cases = [
            Case(policy=policy, rate=load * full, jobs=_JOBS, seed=seed)
            for seed in range(max(1, seeds // 2))
            for load in _LOADS
            for policy in _POLICIES
        ]
        return msgspec.to_builtins(run_cases(cases, self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        rows = []
        for load, rate in zip(_LOADS, found.all_of("rate"), strict=True):
            for figure, label in _SHOWN.items():
                values = {policy: found.mean(figure, rate=rate, policy=policy) for policy in _POLICIES}
                rows.append([load, label, *values.values(), number(values["fcfs"] / values["skip-join"], "x")])
        return {"figures": table(["load", "", *_POLICIES, "fcfs / skip-join"], rows)}
