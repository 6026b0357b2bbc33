"""Latency against arrival rate: the paper's main figure, for three models and two datasets."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from common.config import Policy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.plots import Curve, draw_curves, figure
from launch.lab.sweep import Case, Crossing, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_LOADS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0, 4.0)
_STATIC_LOADS = (0.05, 0.1, 0.2, 0.4, 0.7)  # static batches are saturated long before
_POLICIES: tuple[Policy, ...] = ("static", "fcfs", "mlfq", "skip-join", "srpt")
_OVERLOAD = 1.6
SLO = 10  # decode iterations per output token: the paper's

# Where the curves of FastServe's artifact cross 10 decode iterations per token (0.3 s for OPT-13B), requests per
# second over those of its own FCFS engine, by dataset and model: mean, and P95 where it says.
_PAPER = {
    ("sharegpt", "opt-13b"): "2.0 (P95 2.0)",
    ("sharegpt", "opt-66b"): "2.2 (P95 2.8)",
    ("sharegpt", "opt-175b"): "2.4 (P95 1.5)",
    ("alpaca", "opt-13b"): "2.0",
    ("alpaca", "opt-66b"): "1.7",
    ("alpaca", "opt-175b"): "1.6",
}


class Rates:
    name = "rates"

    def measure(self, seeds: int) -> Data:
        return msgspec.to_builtins(run_cases(list(self._cases(seeds)), self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        for workload, model in _PAPER:
            self._draw(found, workload, model, pictures)
        return {"crossings": self._crossings(found), "overload": self._overload(found)}

    def _cases(self, seeds: int) -> Iterator[Case]:
        for workload, model in _PAPER:
            full = capacity(PRESETS[model], make_requests(workload, 4000), 16)
            for policy in _POLICIES:
                for load in _STATIC_LOADS if policy == "static" else _LOADS:
                    for seed in range(seeds):
                        yield Case(policy=policy, rate=load * full, workload=workload, machine=model, seed=seed)

    def _crossings(self, found: Table) -> str:
        """The table of rates at which each policy meets the objective."""
        rows = []
        for (workload, model), paper in _PAPER.items():
            at = {
                (policy, statistic): self._crossing(found, workload, model, policy, statistic)
                for policy in _POLICIES
                for statistic in ("mean", "p95")
            }
            rates = [f"{at[policy, 'mean']} / {at[policy, 'p95']}" for policy in _POLICIES]
            gains = [at["skip-join", statistic].over(at["fcfs", statistic]) for statistic in ("mean", "p95")]
            rows.append([workload, model, *rates, *gains, paper])
        head = ["lengths", "model", *_POLICIES, "skip-join / fcfs, mean", "P95", "the paper"]
        return table(head, rows)

    def _overload(self, found: Table) -> str:
        rows = []
        for workload, model in _PAPER:
            rates = found.all_of("rate", workload=workload, machine=model, policy="fcfs")
            at = {"workload": workload, "machine": model, "rate": rates[_LOADS.index(_OVERLOAD)]}
            norm = {p: found.mean("mean_norm_s", policy=p, **at) for p in _POLICIES if p != "static"}
            jct = {p: found.mean("mean_jct_s", policy=p, **at) for p in norm}
            p99 = {p: found.mean("p99_jct_s", policy=p, **at) for p in norm}
            better = number(norm["fcfs"] / norm["skip-join"], "x")
            tails = f"{number(p99['fcfs'])} / {number(p99['skip-join'])}"
            rows.append([workload, model, *norm.values(), better, *jct.values(), tails])
        policies = [policy for policy in _POLICIES if policy != "static"]
        head = ["lengths", "model", *(f"{p}: s/token" for p in policies), "fcfs / skip-join"]
        head += [*(f"{p}: JCT, s" for p in policies), "P99 JCT, fcfs / skip-join"]
        return table(head, rows)

    def _crossing(self, found: Table, workload: str, model: str, policy: Policy, statistic: str) -> Crossing:
        rates, norms, _ = _curve(found, workload, model, policy, f"{statistic}_norm_s")
        return Crossing.of(rates, norms, SLO * PRESETS[model].decode_s)

    def _draw(self, found: Table, workload: str, model: str, pictures: Path) -> None:
        with figure(pictures / f"{self.name}-{workload}-{model}.png", 3) as axes:
            for axis, (name, label) in zip(axes, _PANELS.items(), strict=True):
                curves: dict[str, Curve] = {
                    policy: Curve(*_curve(found, workload, model, policy, name)) for policy in _POLICIES
                }
                slo = SLO * PRESETS[model].decode_s if "norm" in name else None
                draw_curves(axis, curves, x="requests per second", y=label, slo=slo)
            axes[1].set_title(f"{model}, {workload}")


_PANELS = {
    "mean_norm_s": "mean latency per token, s",
    "p95_norm_s": "P95 latency per token, s",
    "mean_jct_s": "mean JCT, s",
}


def _curve(found: Table, workload: str, model: str, policy: Policy, name: str) -> tuple[list[float], ...]:
    at = {"workload": workload, "machine": model, "policy": policy}
    rates = found.all_of("rate", **at)
    points = [found.over_seeds(name, rate=rate, **at) for rate in rates]
    return rates, [mean for mean, _ in points], [deviation for _, deviation in points]
