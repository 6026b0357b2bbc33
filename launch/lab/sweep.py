"""Sweeps: many simulations, on all cores, each described by a case that fits on one line of JSON."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from typing import Literal

import msgspec
import numpy as np
from tqdm import tqdm

from common.config import Config, KvStrategy, Policy
from launch.lab.machine import PRESETS, UNLIMITED, Machine
from launch.lab.simulator import Simulation
from launch.lab.workload import Request, make_requests

Figures = dict[str, float]  # what is kept of `Simulated.summary`, in six significant digits

_KEPT = (
    *("mean_norm_s", "p95_norm_s", "mean_jct_s", "p95_jct_s", "p99_jct_s", "mean_ttft_s", "p95_ttft_s"),
    *("stall_share", "preemptions", "promotions", "makespan_s"),
)


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One simulation. The same case gives the same figures."""

    policy: Policy
    rate: float  # requests per second
    workload: str = "sharegpt"
    jobs: int = 400
    seed: int = 0
    cv: float = 1.0
    machine: str = "opt-13b"
    batch: int = 16
    stages: int | None = None  # None: the machine's
    kv_strategy: KvStrategy = "proactive"
    device_share: float = 1.0  # of the machine's device memory for KV; 0: unlimited
    aging: float = 8.0
    aging_limit_ms: float | None = None

    def requests(self) -> list[Request]:
        return make_requests(self.workload, self.jobs, self.rate, self.cv, self.seed)

    def hardware(self) -> Machine:
        machine = PRESETS[self.machine]
        device_bytes = int(self.device_share * machine.device_bytes) if self.device_share else UNLIMITED
        return replace(machine, device_bytes=device_bytes, stages=self.stages or machine.stages)

    def run(self) -> Figures:
        machine = self.hardware()
        config = Config(
            policy=self.policy,
            kv_strategy=self.kv_strategy,
            max_batch_jobs=self.batch,
            pipeline_parallel=machine.stages,
            aging=self.aging,
            aging_limit_ms=self.aging_limit_ms,
            # As in the paper: whole prompts, and what moved or was dropped is gone from the device.
            prefill_chunk_tokens=0,
        )
        figures = Simulation(config, machine, self.requests()).run().summary()
        return {name: float(f"{figures[name]:.6g}") for name in _KEPT}


class Outcome(msgspec.Struct, frozen=True):
    """A case and what it gave."""

    case: Case
    figures: Figures


def run_cases(cases: Sequence[Case], label: str) -> list[Outcome]:
    """The outcomes of all cases, in their order."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        figures = list(tqdm(pool.map(Case.run, cases, chunksize=1), total=len(cases), desc=label))
    return [Outcome(case, found) for case, found in zip(cases, figures, strict=True)]


class Table:
    """Outcomes to choose from."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes = list(outcomes)

    def over_seeds(self, figure: str, **fields: object) -> tuple[float, float]:
        """Mean and standard deviation of a figure over all outcomes whose cases have these fields."""
        values = self.values(figure, **fields)
        assert values, f"no outcome has {fields}"
        return float(np.mean(values)), float(np.std(values))

    def mean(self, figure: str, **fields: object) -> float:
        return self.over_seeds(figure, **fields)[0]

    def values(self, figure: str, **fields: object) -> list[float]:
        found = (outcome for outcome in self._outcomes if _has(outcome.case, fields))
        return [outcome.figures[figure] for outcome in found]

    def all_of(self, field: str, **fields: object) -> list[float]:
        """The values that a field takes in cases that have the others, ascending."""
        return sorted({getattr(outcome.case, field) for outcome in self._outcomes if _has(outcome.case, fields)})


class Crossing(msgspec.Struct, frozen=True):
    """Where a rising curve crosses a limit: at `x`, or beyond the ends of what was measured."""

    x: float
    beyond: Literal["", "over ", "under "] = ""

    @classmethod
    def of(cls, xs: Sequence[float], ys: Sequence[float], limit: float) -> "Crossing":
        """Interpolated on the logarithm of y."""
        points = list(zip(xs, ys, strict=True))
        for (x0, y0), (x1, y1) in pairwise(points):
            if y0 <= limit < y1:
                return cls(x0 + (x1 - x0) * float(np.log(limit / y0) / np.log(y1 / y0)))
        return cls(xs[0], "under ") if ys[0] > limit else cls(xs[-1], "over ")

    def over(self, other: "Crossing") -> str:
        """The ratio of two crossings, as text."""
        beyond = self.beyond or {"over ": "under ", "under ": "over "}.get(other.beyond, "")
        return f"{beyond}{self.x / other.x:.3g}x" if "" in (self.beyond, other.beyond) else "-"

    def __str__(self) -> str:
        return f"{self.beyond}{self.x:.3g}"


def _has(case: Case, fields: dict[str, object]) -> bool:
    return all(getattr(case, name) == value for name, value in fields.items())
