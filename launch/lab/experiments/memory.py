"""KV strategies where the device is small, and the paper's alpha against relative aging."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from common.config import KvStrategy
from launch.lab.experiments.experiment import Data, number, table
from launch.lab.machine import PRESETS, capacity
from launch.lab.plots import Curve, draw_curves, figure
from launch.lab.sweep import Case, Crossing, Outcome, Table, run_cases
from launch.lab.workload import make_requests

_STRATEGIES: tuple[KvStrategy, ...] = ("proactive", "reactive", "recompute", "defer")
_SHARES = (1.0, 0.6)
_LOADS = (0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0)
_ALPHAS_MS = (300.0, 1000.0, 3000.0, 10000.0, 30000.0)
_ALPHA_LOAD = 1.6
_LIMIT_S = 0.3


class MemoryExperiment:
    name = "memory"

    def measure(self, seeds: int) -> Data:
        return msgspec.to_builtins(run_cases(list(self._cases(seeds)), self.name))

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        found = Table(msgspec.convert(data, list[Outcome]))
        self._draw(found, pictures)
        ample, small = (self._strategies(found, share) for share in _SHARES)
        return {"ample": ample, "small": small, "alphas": self._alphas(found)}

    def _cases(self, seeds: int) -> Iterator[Case]:
        full = _capacity()
        for seed in range(seeds):
            for load in _LOADS:
                yield Case(policy="skip-join", rate=load * full, device_share=0.0, seed=seed)
                for share in _SHARES:
                    for strategy in _STRATEGIES:
                        yield Case(
                            policy="skip-join", rate=load * full, device_share=share, kv_strategy=strategy, seed=seed
                        )
            for alpha in _ALPHAS_MS:
                yield Case(policy="skip-join", rate=_ALPHA_LOAD * full, aging_limit_ms=alpha, seed=seed)
            for aging in (0.0, 2.0):  # 8, the default, is above
                yield Case(policy="skip-join", rate=_ALPHA_LOAD * full, aging=aging, seed=seed)

    def _strategies(self, found: Table, share: float) -> str:
        rates = found.all_of("rate")
        rows = []
        plain: dict[str, object] = {"aging": 8.0, "aging_limit_ms": None, "policy": "skip-join"}
        kinds: dict[str, dict[str, object]] = {"unlimited": {"device_share": 0.0}}
        kinds |= {strategy: {"device_share": share, "kv_strategy": strategy} for strategy in _STRATEGIES}
        for name, fields in kinds.items():
            at = {**plain, **fields}
            norms = [found.mean("mean_norm_s", rate=rate, **at) for rate in rates]
            stalls = [found.mean("stall_share", rate=rate, **at) for rate in rates]
            limit = Crossing.of(rates, norms, _LIMIT_S)
            rows.append([name, *norms, number(100 * max(stalls), " %"), str(limit)])
        head = ["strategy", *(f"{number(rate)}/s" for rate in rates), "most time stalled", "reaches 0.3 s at, per s"]
        return table(head, rows)

    def _alphas(self, found: Table) -> str:
        rate = found.all_of("rate", aging_limit_ms=_ALPHAS_MS[0])[0]
        kinds: dict[str, dict[str, object]] = {
            f"alpha {alpha / 1000:g} s": {"aging_limit_ms": alpha} for alpha in _ALPHAS_MS
        }
        kinds |= {
            f"relative, {aging:g}" + (" (default)" if aging == 8 else ""): {"aging": aging, "aging_limit_ms": None}
            for aging in (2.0, 8.0)
        }
        kinds["none"] = {"aging": 0.0, "aging_limit_ms": None}
        rows = []
        for name, fields in kinds.items():
            at = {"rate": rate, "device_share": 1.0, "kv_strategy": "proactive", **fields}
            figures = [found.mean(figure, **at) for figure in ("mean_norm_s", "mean_jct_s", "p99_jct_s")]
            rows.append(
                [
                    name,
                    *figures,
                    number(100 * found.mean("stall_share", **at), " %"),
                    found.mean("promotions", **at),
                    found.mean("preemptions", **at),
                ]
            )
        return table(
            ["promoted after", "s/token", "JCT, s", "P99 JCT, s", "stalled", "promotions", "preemptions"], rows
        )

    def _draw(self, found: Table, pictures: Path) -> None:
        rates = found.all_of("rate")
        with figure(pictures / f"{self.name}.png", len(_SHARES)) as axes:
            for axis, share in zip(axes, _SHARES, strict=True):
                curves: dict[str, Curve] = {}
                for strategy in _STRATEGIES:
                    at: dict[str, object] = {
                        "device_share": share,
                        "kv_strategy": strategy,
                        "aging": 8.0,
                        "aging_limit_ms": None,
                    }
                    points = [found.over_seeds("mean_norm_s", rate=rate, **at) for rate in rates]
                    curves[strategy] = Curve(
                        rates, [mean for mean, _ in points], [deviation for _, deviation in points]
                    )
                draw_curves(axis, curves, x="requests per second", y="mean latency per token, s", slo=_LIMIT_S)
                axis.set_title(f"{_gb(share)} on the device")


def _capacity() -> float:
    return capacity(PRESETS["opt-13b"], make_requests("sharegpt", 4000), 16)


def _gb(share: float) -> str:
    return f"{share * PRESETS['opt-13b'].device_bytes / 1e9:g} GB"
