"""Real traffic: Azure's conversation trace of 2023, whose prompts are long and whose outputs are much alike."""

from pathlib import Path

import msgspec

from common.config import Policy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.sweep import Case, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_LOADS = (0.8, 1.0, 1.2, 1.6)
_POLICIES: tuple[Policy, ...] = ("fcfs", "mlfq", "skip-join", "srpt")
_JOBS = 1500


class Azure:
    name = "azure"

    def measure(self, seeds: int) -> Data:
        full = capacity(PRESETS["opt-13b"], make_requests("azure", _JOBS), 16)
        cases = [
            Case(policy=policy, rate=load * full, workload="azure", jobs=_JOBS)
            for load in _LOADS
            for policy in _POLICIES
        ]
        return msgspec.to_builtins(run_cases(cases, self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        rows = []
        for load, rate in zip(_LOADS, found.all_of("rate"), strict=True):
            norm = {policy: found.mean("mean_norm_s", rate=rate, policy=policy) for policy in _POLICIES}
            jct = {policy: found.mean("mean_jct_s", rate=rate, policy=policy) for policy in _POLICIES}
            stalled = number(100 * found.mean("stall_share", rate=rate, policy="skip-join"), " %")
            better = number(norm["fcfs"] / norm["skip-join"], "x"), number(jct["fcfs"] / jct["skip-join"], "x")
            rows.append([load, *norm.values(), better[0], *jct.values(), better[1], stalled])
        head = ["load", *(f"{p}: s/token" for p in _POLICIES), "fcfs / skip-join"]
        head += [*(f"{p}: JCT, s" for p in _POLICIES), "fcfs / skip-join", "skip-join stalled"]
        return {"figures": table(head, rows)}
