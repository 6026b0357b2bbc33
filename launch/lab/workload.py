"""Workloads: how long prompts and outputs are, and when requests arrive. Seeded; knows no server and no scheduler."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from common.config import ConfigError
from launch.lab.trace_file import azure_conversation, read_trace

Tokens = np.ndarray  # int64 [requests]

LONGEST_CONTEXT = 2048  # of the OPT models: prompt and output together


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sends, as far as scheduling is concerned."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


class Lengths(Protocol):
    """A joint distribution of prompt and output lengths."""

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        """Prompt and output tokens of `count` requests, each at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Independent log-normal lengths, drawn again where prompt and output together are longer than the context."""

    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    most: int = LONGEST_CONTEXT

    def scaled(self, factor: float) -> "LogNormal":
        medians = {"prompt_median": self.prompt_median * factor, "output_median": self.output_median * factor}
        return replace(self, **medians, most=max(2, round(self.most * factor)))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        prompts, outputs = np.zeros(0, np.int64), np.zeros(0, np.int64)
        while len(prompts) < count:
            p = np.ceil(rng.lognormal(math.log(self.prompt_median), self.prompt_sigma, count)).astype(np.int64)
            o = np.ceil(rng.lognormal(math.log(self.output_median), self.output_sigma, count)).astype(np.int64)
            fits = p + o <= self.most
            prompts, outputs = np.append(prompts, p[fits]), np.append(outputs, o[fits])
        return prompts[:count], outputs[:count]


@dataclass(frozen=True, slots=True)
class Zipf:
    """Lengths from 1 to `most` with P(n) proportional to n ** -exponent: the larger, the more skewed (0: uniform)."""

    exponent: float
    most: int = 1024

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        lengths = np.arange(1, self.most + 1)
        weights = lengths**-self.exponent
        weights /= weights.sum()
        return rng.choice(lengths, count, p=weights), rng.choice(lengths, count, p=weights)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Prompts and outputs uniform between two lengths, both included."""

    least: int
    most: int

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        return rng.integers(self.least, self.most + 1, count), rng.integers(self.least, self.most + 1, count)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Prompts `ratio` times as long as outputs, in the mean; both exponential, so that neither tells the other."""

    ratio: float
    mean_total: float = 1024.0

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        output = self.mean_total / (1 + self.ratio)
        prompts = 1 + rng.exponential(self.mean_total - output, count).astype(np.int64)
        outputs = 1 + rng.exponential(output, count).astype(np.int64)
        return prompts, outputs


@dataclass(frozen=True, slots=True)
class Mix:
    """Chat with some essays: 80 % short (prompt 30-60, output 16-48), 20 % long (prompt 200-600, output 200-400)."""

    long_share: float = 0.2

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        is_long = rng.random(count) < self.long_share
        prompts = np.where(is_long, rng.integers(200, 601, count), rng.integers(30, 61, count))
        outputs = np.where(is_long, rng.integers(200, 401, count), rng.integers(16, 49, count))
        return prompts, outputs


# Log-normal, as lengths of both datasets spread over two orders of magnitude. Prompts have the means published for them
# (Kwon et al., SOSP 2023, figure 11: 161 and 19 tokens). Outputs are fitted to one curve that FastServe's authors
# publish with their artifact (github.com/LLMServe/FastServe, plot.ipynb, figure 11): the latency of OPT-13B under FCFS
# against the rate, which depends on outputs alone, by their mean (where it rises) and that of 1/output (how far). So
# FCFS on OPT-13B is fitted, while every other policy, model and memory is a prediction.
SHAREGPT = LogNormal(prompt_median=84.5, prompt_sigma=1.25, output_median=122.0, output_sigma=1.6)
ALPACA = LogNormal(prompt_median=16.2, prompt_sigma=0.55, output_median=19.8, output_sigma=1.3)


def parse_lengths(text: str) -> Lengths:
    """A distribution by name: sharegpt[:SCALE], alpaca[:SCALE], mix, zipf[:EXPONENT], uniform:LEAST-MOST, ratio:RATIO.

    A scale makes all lengths so many times as long, for machines that are slower or faster than the paper's.
    """
    name, _, parameter = text.partition(":")
    try:
        return _LENGTHS[name](parameter)
    except (KeyError, ValueError):
        raise ConfigError(
            f"unknown workload {text!r}; choose sharegpt, alpaca, mix, azure, zipf:1.1, uniform:16-512 or ratio:16"
        ) from None


def _uniform(parameter: str) -> Lengths:
    least, most = map(int, parameter.split("-"))
    if not 1 <= least <= most:
        raise ValueError
    return Uniform(least, most)


def _positive(parameter: str) -> float:
    value = float(parameter)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def _mix(parameter: str) -> Lengths:
    if parameter:
        raise ValueError
    return Mix()


_LENGTHS: dict[str, Callable[[str], Lengths]] = {
    "sharegpt": lambda parameter: SHAREGPT.scaled(_positive(parameter or "1")),
    "alpaca": lambda parameter: ALPACA.scaled(_positive(parameter or "1")),
    "mix": _mix,
    "zipf": lambda parameter: Zipf(_positive(parameter or "1.1")),
    "uniform": _uniform,
    "ratio": lambda parameter: Ratio(_positive(parameter)),
}


def arrivals(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> np.ndarray:
    """Arrival times in s of `count` requests at `rate` per second.

    Times between arrivals follow a Gamma distribution with coefficient of variation `cv`; 1 is a Poisson process,
    0 a metronome, more is burstier.
    """
    if cv == 0:
        return np.arange(count) / rate
    shape = cv**-2
    return np.cumsum(rng.gamma(shape, 1 / (rate * shape), count))


def make_requests(workload: str, count: int, rate: float = 1.0, cv: float = 1.0, seed: int = 0) -> list[Request]:
    """`count` requests of a named workload, arriving at `rate` per second. `azure` keeps its own bursts.

    Raises ConfigError.
    """
    if count < 1 or not 0 < rate < math.inf or not 0 <= cv < math.inf:
        raise ConfigError(f"{count} requests, {rate:g} a second, cv {cv:g}: these numbers must be greater than 0")
    if workload == "azure":
        return rescaled([Request(*row) for row in azure_conversation()[:count]], rate)
    rng = np.random.default_rng(seed)
    prompts, outputs = parse_lengths(workload).draw(rng, count)
    times = arrivals(rng, count, rate, cv)
    return [Request(float(t), int(p), int(o)) for t, p, o in zip(times, prompts, outputs, strict=True)]


def read_requests(path: str, count: int | None = None, rate: float | None = None) -> list[Request]:
    """The first `count` requests of a trace file; with a rate its arrival times are stretched to that mean.

    Raises ConfigError.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"{rate:g} requests a second: it must be greater than 0")
    requests = [Request(*row) for row in read_trace(path)[:count]]
    return requests if rate is None else rescaled(requests, rate)


def rescaled(requests: list[Request], rate: float) -> list[Request]:
    """The same requests with time stretched so that they arrive at `rate` per second in the mean."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    if len(requests) < 2 or span_s <= 0:
        return requests
    factor = (len(requests) - 1) / rate / span_s
    start_s = requests[0].arrival_s
    return [Request((r.arrival_s - start_s) * factor, r.prompt_tokens, r.output_tokens) for r in requests]
