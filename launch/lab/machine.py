"""The machines that a simulation can run on: what iterations, KV and copies cost there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import Config, ConfigError
from gateway.profiling import load_profile
from gateway.scheduling.cost import IterationCost, LinearCost
from launch.lab.workload import Request

GB = 10**9
UNLIMITED = 2**62  # bytes
BLOCK_TOKENS = Config().block_tokens

# An A100-40G of the paper's testbed: 1.555 TB/s of memory bandwidth, 312 TFLOPS in fp16 (NVIDIA's data sheet), of
# which 36 GB are left for weights and KV. The hosts have 1,152 GB for 8 GPUs each; 128 GB a GPU may hold KV.
_BANDWIDTH, _FLOPS, _GPU_BYTES, _HOST_BYTES = 1.555e12, 312e12, 36 * GB, 128 * GB
# PCIe 4.0 x16 moves 25 GB/s of the 32 that it could, in each direction.
_PCIE = 25e9
# The share of the roofline that the paper's engine reaches: 26 GB of OPT-13B take 16.7 ms to read, and it says 30 ms.
_EFFICIENCY = 0.557


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes are summed over the stages of the pipeline."""

    cost: IterationCost
    decode_s: float  # one decode iteration: the unit of the paper's SLO, which is ten of them
    block_bytes: float  # of one KV block
    device_bytes: int
    host_bytes: int
    stages: int = 1  # of its pipeline


def _opt(
    billions: float,
    layers: int,
    hidden: int,
    *,
    gpus: int = 1,
    stages: int = 1,
    decode_s: float | None = None,
    token_s: float | None = None,
) -> Machine:
    """An OPT model in fp16 on A100s by the roofline: reading the weights or computing with them, whichever is longer.

    Of a pipeline, only one stage works for a token at a time. KV per token is 4 x layers x hidden bytes, as published.
    """
    at_a_time, weights = gpus // stages, 2e9 * billions
    decode_s = decode_s or weights / at_a_time / _BANDWIDTH / _EFFICIENCY
    token_s = token_s or 2e9 * billions / at_a_time / _FLOPS / _EFFICIENCY
    block_bytes = 4.0 * layers * hidden * BLOCK_TOKENS
    cost = LinearCost(decode_s, token_s, block_bytes / (gpus * _PCIE))
    return Machine(cost, decode_s, block_bytes, int(gpus * _GPU_BYTES - weights), gpus * _HOST_BYTES, stages)


PRESETS: dict[str, Machine] = {
    "opt-13b": _opt(13, 40, 5120, decode_s=0.030, token_s=0.000151),  # both times are the paper's
    "opt-66b": _opt(66, 64, 9216, gpus=4),
    "opt-175b": _opt(175, 96, 12288, gpus=16, stages=2, decode_s=0.060),  # the paper's; the roofline says 51 ms
}


def find_machine(name: str) -> Machine:
    """A preset, or the machine of a profile that `skipjoin profile` has written. Raises ConfigError."""
    if name in PRESETS:
        return PRESETS[name]
    profile = load_profile(Path(name))
    if profile is None:
        raise ConfigError(
            f"{name!r} is neither {', '.join(PRESETS)} nor a profile; `skipjoin profile` says where it keeps one"
        )
    if profile.block_tokens != BLOCK_TOKENS:
        raise ConfigError(
            f"{name} was measured with --block-tokens {profile.block_tokens}; simulations have {BLOCK_TOKENS}"
        )
    return Machine(profile, profile.decode_s(1), profile.block_bytes, UNLIMITED, UNLIMITED, profile.stages)


@dataclass(frozen=True, slots=True)
class Slower:
    """A cost model whose every time is `factor` times as long."""

    cost: IterationCost
    factor: float

    @property
    def copy_s(self) -> float:
        return self.factor * self.cost.copy_s

    def prefill_s(self, tokens: int) -> float:
        return self.factor * self.cost.prefill_s(tokens)

    def decode_s(self, jobs: int) -> float:
        return self.factor * self.cost.decode_s(jobs)

    def iteration_s(self, prefill_tokens: int, decode_jobs: int, context_tokens: int) -> float:
        return self.factor * self.cost.iteration_s(prefill_tokens, decode_jobs, context_tokens)


def slower(machine: Machine, factor: float) -> Machine:
    """The machine when it has other things to do as well."""
    return replace(machine, cost=Slower(machine.cost, factor), decode_s=factor * machine.decode_s)


def capacity(machine: Machine, requests: Sequence[Request], batch: int) -> float:
    """Requests per second that full batches of `batch` jobs can just serve: one over a job's mean share of them.

    Each output token takes a place in an iteration. A prompt takes what it makes its iteration longer.
    """
    count = len(requests)
    outputs = sum(request.output_tokens for request in requests) / count
    context = sum(request.prompt_tokens + request.output_tokens / 2 for request in requests) / count
    decode_s = machine.cost.iteration_s(0, batch, round(batch * context))

    def extra_s(prompt: int) -> float:
        return machine.cost.iteration_s(prompt, batch - 1, round((batch - 1) * context)) - decode_s

    prefill_s = sum(max(0.0, extra_s(request.prompt_tokens)) for request in requests) / count
    return machine.stages / (outputs * decode_s / batch + prefill_s)
