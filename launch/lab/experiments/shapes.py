"""Burstiness, skew, prompt against output length, and the size of batches."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from common.config import Policy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.plots import Curve, draw_curves, figure
from launch.lab.sweep import Case, Crossing, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_POLICIES: tuple[Policy, ...] = ("fcfs", "mlfq", "skip-join", "srpt")
_CVS = (1.0, 2.0, 4.0, 8.0)
_EXPONENTS = (0.1, 0.5, 1.0, 1.5)
_RATIOS = (0.25, 1, 4, 16, 64, 256)
_BATCHES = (16, 64, 128)
_LOADS = (0.85, 1.0, 1.2, 1.6, 2.2, 3.0)
_LOAD = 1.2
_LIMIT_S = 0.3


class Shapes:
    name = "shapes"

    def measure(self, seeds: int) -> Data:
        return msgspec.to_builtins(run_cases(list(self._cases(seeds)), self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        self._draw(found, pictures)
        return {
            "bursts": _by(found, "cv", {"workload": "sharegpt", "batch": 16}, _CVS),
            "skews": _by(found, "workload", {}, [f"zipf:{exponent}" for exponent in _EXPONENTS]),
            "ratios": self._ratios(found),
            "batches": self._batches(found),
        }

    def _cases(self, seeds: int) -> Iterator[Case]:
        for seed in range(seeds):
            for policy in _POLICIES:
                for cv in _CVS:
                    yield Case(policy=policy, rate=_rate("sharegpt", 0.8), cv=cv, seed=seed)
                for workload in (*(f"zipf:{e}" for e in _EXPONENTS), *(f"ratio:{r}" for r in _RATIOS)):
                    yield Case(policy=policy, rate=_rate(workload, _LOAD), workload=workload, seed=seed)
            for batch in _BATCHES[1:]:
                for policy in ("fcfs", "skip-join"):
                    for load in _LOADS:
                        rate = _rate("sharegpt", load, batch)
                        yield Case(policy=policy, rate=rate, batch=batch, jobs=100 * batch // 16, seed=seed)

    def _ratios(self, found: Table) -> str:
        rows = []
        for ratio in _RATIOS:
            at = {"workload": f"ratio:{ratio}"}
            norm = {policy: found.mean("mean_norm_s", policy=policy, **at) for policy in _POLICIES}
            jct = {policy: found.mean("mean_jct_s", policy=policy, **at) for policy in _POLICIES}
            gains = [number(of["mlfq"] / of["skip-join"], "x") for of in (norm, jct)]
            rows.append([ratio, *norm.values(), *gains])
        return table(["prompt / output", *_POLICIES, "mlfq / skip-join", "the same of JCT"], rows)

    def _batches(self, found: Table) -> str:
        rows = []
        for batch in _BATCHES[1:]:
            rates = found.all_of("rate", batch=batch)
            at: dict[Policy, Crossing] = {}
            for policy in ("fcfs", "skip-join"):
                norms = [found.mean("mean_norm_s", policy=policy, batch=batch, rate=rate) for rate in rates]
                at[policy] = Crossing.of(rates, norms, _LIMIT_S)
            rows.append([batch, str(at["fcfs"]), str(at["skip-join"]), at["skip-join"].over(at["fcfs"])])
        return table(["batch", "fcfs, requests/s", "skip-join, requests/s", "skip-join / fcfs"], rows)

    def _draw(self, found: Table, pictures: Path) -> None:
        panels: list[tuple[str, dict[float, dict[str, object]]]] = [
            ("coefficient of variation", {cv: {"cv": cv, "workload": "sharegpt", "batch": 16} for cv in _CVS}),
            ("Zipf exponent", {exponent: {"workload": f"zipf:{exponent}"} for exponent in _EXPONENTS}),
            ("prompt / output", {ratio: {"workload": f"ratio:{ratio}"} for ratio in _RATIOS}),
        ]
        with figure(pictures / f"{self.name}.png", 3) as axes:
            for axis, (label, panel) in zip(axes, panels, strict=True):
                curves: dict[str, Curve] = {}
                for policy in _POLICIES:
                    points = [found.over_seeds("mean_norm_s", policy=policy, **fields) for fields in panel.values()]
                    curves[policy] = Curve(
                        list(panel), [mean for mean, _ in points], [deviation for _, deviation in points]
                    )
                draw_curves(axis, curves, x=label, y="mean latency per token, s")
            axes[0].set_xscale("log", base=2)
            axes[2].set_xscale("log", base=4)


def _rate(workload: str, load: float, batch: int = 16) -> float:
    return load * capacity(PRESETS["opt-13b"], make_requests(workload, 4000), batch)


def _by(found: Table, field: str, fields: dict[str, object], values: list[str] | tuple[float, ...]) -> str:
    rows = []
    for value in values:
        norm = {p: found.mean("mean_norm_s", policy=p, **fields, **{field: value}) for p in _POLICIES}
        rows.append([value, *norm.values(), number(norm["fcfs"] / norm["skip-join"], "x")])
    return table([field, *_POLICIES, "fcfs / skip-join"], rows)
