"""What the engine makes of a GPU: decoding against memory bandwidth, prompts against matrix products, copies beside it.

One process computes all layers of a model with random weights; what is timed is the runner's whole iteration, from a
plan to its tokens. What the device can do at best is measured on the spot.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from common.config import Config
from common.model_spec import ModelSpec
from launch.bench.limits import Bounds, measure_limits

if TYPE_CHECKING:
    from launch.bench.device import DeviceBench

_ROOT = Path(__file__).parents[2]
_COPYING_JOBS = 32  # most jobs of the iteration that copies run beside

Row = dict[str, float]

_LLAMA_3_8B = ModelSpec(
    family="llama",
    architecture="LlamaForCausalLM",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_size=14336,
    vocab_size=128256,
    context_length=8192,
    dtype="bf16",
    activation="silu",
    norm_eps=1e-5,
    tied_embeddings=False,
    eos_token_ids=(128001,),
    bos_token_id=128000,
    rope_theta=500000.0,
)
_SHAPES = {
    "llama-3-8b": _LLAMA_3_8B,
    "tiny": replace(
        _LLAMA_3_8B,
        num_layers=4,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        ffn_size=128,
        vocab_size=256,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBench:
    """Run the tests that need a GPU, then time decoding, prompts and copies on it, against what it can do at best."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where. cpu: to try the benchmark itself, with --shape tiny."""
    shape: Literal["llama-3-8b", "tiny"] = "llama-3-8b"
    """Size of the model."""
    layers: int | None = None
    """Layers of it. Default: all."""
    jobs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of decoding jobs."""
    context: int = 1024
    """Tokens of each job's context, and of the prompts that transformers gets as well."""
    prompts: tuple[int, ...] = (128, 512, 2048, 8192)
    """Lengths of prompts."""
    iterations: int = 20
    """Iterations per measurement; the medians count."""
    generating_jobs: int = 32
    """Jobs that Skipjoin and transformers batch as they will. 0: no comparison."""
    output_tokens: int = 128
    """Tokens that each of them generates."""
    tests: bool = True
    """Run the tests first, where they are at hand."""

    def run(self) -> int:
        from launch.bench import device  # noqa: PLC0415 - a command line that measures nothing needs no torch

        shape = _SHAPES[self.shape]
        spec = replace(shape, num_layers=self.layers or shape.num_layers)
        placement = device.place_on(self.device, spec)
        failed = self.tests and self.device == "cuda" and _tests_fail()
        limits = measure_limits(self.device, str(placement.dtype).removeprefix("torch."))
        print(
            f"{placement.name}: {limits.bytes_per_s / 1e9:.0f} GB/s, {limits.flops_per_s / 1e12:.4g} TFLOP/s",
            flush=True,
        )
        kv_bytes = spec.kv_bytes_per_token(spec.num_layers, placement.kv_dtype.itemsize)
        bounds = Bounds(limits, spec, placement.dtype.itemsize, kv_bytes)
        bench = device.DeviceBench(spec, placement, self._config(), tokens=self._tokens(), iterations=self.iterations)
        report = {"bench": "gpu", "on": placement.name, **asdict(self), **self._measure(bench, bounds)}
        if self.generating_jobs:
            rounds = [_random_prompts(self.generating_jobs, self.context, spec.vocab_size, seed) for seed in range(2)]
            report["skipjoin_s"] = self._said("Skipjoin", bench.generate_s(rounds, self.output_tokens))
            del bench  # Transformers needs the memory.
            seconds = device.transformers_s(spec, placement, rounds, self.output_tokens)
            report["transformers_s"] = self._said("transformers", seconds)
        print(json.dumps(report))
        return 1 if failed else 0

    def _config(self) -> Config:
        most = max(*self.jobs, self.generating_jobs)
        return Config(max_batch_jobs=most, max_batch_tokens=max(2048, *self.prompts), prefix_cache=False)

    def _tokens(self) -> int:
        """For which there should be memory at once."""
        generated = self.generating_jobs * (self.context + self.output_tokens)
        return max(max(self.jobs) * self.context, generated, *self.prompts)

    def _measure(self, bench: "DeviceBench", bounds: Bounds) -> dict[str, Any]:
        return {
            **asdict(bounds.limits),
            "decode": list(self._decode(bench, bounds)),
            "prompt": list(self._prompts(bench, bounds)),
            "copies": self._copies(bench),
        }

    def _decode(self, bench: "DeviceBench", bounds: Bounds) -> Iterator[Row]:
        print(f"\n jobs  decode tok/s  of bandwidth's  without graphs  (contexts of {self.context} tokens)")
        for jobs in self.jobs:
            if not bench.fits(jobs, self.context):
                print(f"{jobs:5}  does not fit")
                continue
            row = {
                "jobs": jobs,
                "s": bench.decode_s(jobs, self.context),
                "least_s": bounds.decode_s(jobs, self.context),
                "without_graphs_s": bench.decode_s(jobs, self.context, graphs=False),
            }
            shares = f"{row['least_s'] / row['s']:14.0%}  {jobs / row['without_graphs_s']:14.0f}"
            print(f"{jobs:5}  {jobs / row['s']:12.0f}  {shares}", flush=True)
            yield row

    def _prompts(self, bench: "DeviceBench", bounds: Bounds) -> Iterator[Row]:
        print("\nprompt  tok/s     of products'")
        for tokens in self.prompts:
            if not bench.fits(1, tokens):
                print(f"{tokens:6}  does not fit")
                continue
            row = {"tokens": tokens, "s": bench.prompt_s(tokens), "least_s": bounds.prompt_s(tokens)}
            print(f"{tokens:6}  {tokens / row['s']:8.0f}  {row['least_s'] / row['s']:12.0%}", flush=True)
            yield row

    def _copies(self, bench: "DeviceBench") -> Row:
        jobs = max(jobs for jobs in self.jobs if bench.fits(jobs, self.context))
        found = bench.overlap(min(jobs, _COPYING_JOBS), self.context)
        rate = found.bytes_copied / found.copies_s / 1e9
        print(
            f"\niteration {found.iteration_s * 1e3:.2f} ms, copies {found.copies_s * 1e3:.2f} ms ({rate:.3g} GB/s), "
            f"iteration with copies {found.both_s * 1e3:.2f} ms: {found.hidden:.0%} of the shorter one is hidden",
            flush=True,
        )
        return {**asdict(found), "hidden": found.hidden}

    def _said(self, who: str, seconds: float | None) -> float | None:
        """Prints what it returns."""
        tokens = self.generating_jobs * self.output_tokens
        speed = "is not installed" if seconds is None else f"{tokens / seconds:.0f} tok/s"
        print(
            f"{who}, {self.generating_jobs} jobs from {self.context} to {self.output_tokens} tokens: {speed}",
            flush=True,
        )
        return seconds


def _random_prompts(jobs: int, tokens: int, vocab: int, seed: int) -> list[list[int]]:
    random = Random(seed)
    return [[random.randrange(vocab) for _ in range(tokens)] for _ in range(jobs)]


def _tests_fail() -> bool:
    """An installed package has no tests, of which none fails."""
    if not (_ROOT / "tests").is_dir():
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
    return subprocess.run(command, cwd=_ROOT, check=False).returncode != 0
