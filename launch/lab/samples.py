"""What clients experienced, and its summary: the same numbers for simulated, real and foreign servers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times in s; TTFT and JCT count from the request's arrival."""

    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    jct_s: float
    longest_gap_s: float = 0.0  # between two tokens

    @property
    def norm_s(self) -> float:
        """Normalized latency: JCT per output token."""
        return self.jct_s / self.output_tokens

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 where there is but one."""
        return (self.jct_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Means and percentiles over the samples, of which there is at least one."""
    jct = np.array([sample.jct_s for sample in samples])
    norm = np.array([sample.norm_s for sample in samples])
    ttft = np.array([sample.ttft_s for sample in samples])
    tpot = np.array([sample.tpot_s for sample in samples])
    gap = np.array([sample.longest_gap_s for sample in samples])
    return {
        "mean_jct_s": float(jct.mean()),
        **{f"p{p}_jct_s": float(np.percentile(jct, p)) for p in (50, 95, 99)},
        "mean_norm_s": float(norm.mean()),
        **{f"p{p}_norm_s": float(np.percentile(norm, p)) for p in (50, 95, 99)},
        "mean_ttft_s": float(ttft.mean()),
        **{f"p{p}_ttft_s": float(np.percentile(ttft, p)) for p in (50, 95, 99)},
        "mean_tpot_s": float(tpot.mean()),
        **{f"p{p}_tpot_s": float(np.percentile(tpot, p)) for p in (50, 95, 99)},
        "mean_gap_s": float(gap.mean()),
        **{f"p{p}_gap_s": float(np.percentile(gap, p)) for p in (50, 95, 99)},
    }


def by_length(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples by the length of their outputs: who is helped, and who pays. Classes without samples are left out."""
    classes: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.output_tokens):
        bound = next((bound for bound in _BOUNDS if sample.output_tokens <= bound), None)
        name = f"up to {bound} tokens" if bound is not None else f"over {_BOUNDS[-1]} tokens"
        classes.setdefault(name, []).append(sample)
    return classes


_BOUNDS = (32, 128, 512)
