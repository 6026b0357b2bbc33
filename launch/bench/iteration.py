"""Where an iteration's time goes: the real scheduler, codec, stage and detokenizer in turn, in one process.

Left out is what only several processes have: waiting for messages, HTTP. Compare with skipjoin_compute_seconds_total.
"""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tqdm import tqdm

from common.config import Config, KvDtype, Stored
from common.model_files import locate
from common.records import Result, decode_order, decode_report, encode
from common.spec_reader import read_spec
from gateway.generation import Generation
from gateway.scheduling.cost import LinearCost
from gateway.scheduling.scheduler import Scheduler
from gateway.text.text_model import load_text_model
from launch.bench.limits import Bounds, Limits, measure_limits
from launch.bench.stage import open_stage

_COST = LinearCost(decode=0.04, prefill_per_token=0.0015)
_WARM_UP = 2  # iterations
_PROMPTS = 3  # that are timed


@dataclass(slots=True)
class Watch:
    """Seconds by part. A part within another stops the outer one's clock."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def move(self, seconds: float, source: str, target: str) -> None:
        """Charge `target` for what turned out to be its own."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True, slots=True)
class _WatchedModel:
    """A stage's model whose parts are watched."""

    model: Any  # StageModel: torch's types would load torch here
    watch: Watch

    def forward(self, x: Any, positions: Any, attention: Any) -> Any:
        native = getattr(self.model, "native", None)  # it has a watch of its own
        before = native.seconds if native else {}
        with self.watch.part("layers"):
            hidden = self.model.forward(x, positions, attention)
        for part, seconds in native.seconds.items() if native else ():
            self.watch.move(seconds - before[part], "layers", part)
        return hidden

    def logits(self, hidden: Any) -> Any:
        with self.watch.part("head"):
            return self.model.logits(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationBench:
    """Time the parts of a decode iteration, by number of jobs: scheduling, codec, layers, attention, head, text."""

    model: str | None = None
    """Model as for `serve`. Default: the embedded one."""
    weights: Stored = "exact"
    """How matrices are kept, as for `serve`."""
    kv_cache_dtype: KvDtype = "auto"
    """How keys and values are kept, as for `serve`."""
    threads: int | None = None
    """CPU threads. Default: all cores."""
    jobs: tuple[int, ...] = (1, 4, 16)
    """Numbers of jobs to measure."""
    context: int = 256
    """Tokens of each job's prompt."""
    prompt: int = 512
    """Tokens of the prompt whose computation is timed."""
    iterations: int = 20
    """Iterations per measurement; the medians count."""

    def run(self) -> int:
        medians = {jobs: _medians(self._measure(jobs, self.context)) for jobs in tqdm(self.jobs, leave=False)}
        for jobs, ms_by_part in medians.items():
            parts = "  ".join(f"{name} {ms:.2f}" for name, ms in ms_by_part.items())
            total = sum(ms_by_part.values())
            print(f"{jobs:3} jobs: {total:7.2f} ms, {1000 * jobs / total:6.1f} tok/s  |  {parts}")
        rows = [{"jobs": jobs, "ms": ms_by_part} for jobs, ms_by_part in medians.items()]
        kept = {"weights": self.weights, "kv_cache_dtype": self.kv_cache_dtype}
        report = {"bench": "iteration", **kept, "context": self.context, "rows": rows, **self._shares(medians)}
        print(json.dumps(report))
        return 0

    def _shares(self, medians: dict[int, dict[str, float]]) -> dict[str, float]:
        """One job and a long prompt against what the machine could do at best; tells it, too."""
        prompt_s = statistics.median(self._measure_prompt() for _ in range(_PROMPTS))
        limits = measure_limits()
        bounds = self._bounds(limits)
        found = {"bytes_per_s": limits.bytes_per_s, "flops_per_s": limits.flops_per_s, "prompt_s": prompt_s}
        found["prompt_share_of_bound"] = bounds.prompt_s(self.prompt) / prompt_s
        print(
            f"a prompt of {self.prompt} tokens: {1e3 * prompt_s:.0f} ms, {self.prompt / prompt_s:.0f} tok/s, "
            f"{100 * found['prompt_share_of_bound']:.0f} % of what {limits.flops_per_s / 1e9:.0f} GFLOPS allow"
        )
        if 1 in medians:
            decode_s = sum(medians[1].values()) / 1e3
            found["decode_share_of_bound"] = bounds.decode_s(1, self.context) / decode_s
            print(
                f"1 job: {100 * found['decode_share_of_bound']:.0f} % of what reading weights and KV at "
                f"{limits.bytes_per_s / 1e9:.0f} GB/s allows"
            )
        return found

    def _bounds(self, limits: Limits) -> Bounds:
        # A command line that measures nothing needs no torch.
        from worker.device import HostShare, place  # noqa: PLC0415
        from worker.kv_cache import block_bytes  # noqa: PLC0415

        spec, config = read_spec(locate(self.model)), self._config(1, self.context)
        kv_bytes = block_bytes(spec, spec.num_layers, 1, place(config, spec, HostShare()).kv_dtype)
        weight_bytes: list[float] = []
        open_stage(config, 1, lambda model: weight_bytes.append(_weight_bytes(model)))
        return Bounds(limits, spec, weight_bytes[0], kv_bytes)

    def _measure_prompt(self) -> float:
        """Seconds that the iteration with the whole of a prompt takes."""
        return sum(replace(self, iterations=0)._iterations(1, self.prompt)[0].values())

    def _measure(self, jobs: int, context: int) -> list[dict[str, float]]:
        """Seconds by part of every iteration that decodes, warm."""
        return self._iterations(jobs, context)[1 + _WARM_UP :]

    def _iterations(self, jobs: int, context: int) -> list[dict[str, float]]:
        """Seconds by part of every iteration; the first one computes the prompts."""
        config = self._config(jobs, context)
        files = locate(self.model)
        blocks = jobs * -(-(context + _WARM_UP + self.iterations + 1) // config.block_tokens)
        watch = Watch()
        runner, copies = open_stage(config, blocks, lambda model: _WatchedModel(model, watch))
        scheduler = Scheduler(config, _COST, blocks, 0)
        text = load_text_model(files, read_spec(files)).tokenizer.detokenizer()
        random = Random(0)
        for job in range(jobs):
            prompt = [random.randrange(256) for _ in range(context)]
            scheduler.submit(job, Generation(prompt=prompt, max_tokens=_WARM_UP + self.iterations + 1), 0.0)
        seconds = []
        for now in range(1 + _WARM_UP + self.iterations):
            watch.seconds = {}
            with watch.part("schedule"):
                plan = scheduler.plan(now)
            assert plan is not None
            with watch.part("codec"):
                order = decode_order(encode(plan))
            with watch.part("inputs and sampling"):
                answer = runner.run(order, copies)
            with watch.part("codec"):
                result = decode_report(encode(answer))
            assert isinstance(result, Result)
            with watch.part("schedule"):
                scheduler.commit(result, now + 0.5)
            with watch.part("text"):
                for token in result.tokens:
                    assert token is not None, "logits that are not finite"
                    text.push(token)
            seconds.append(watch.seconds)
        return seconds

    def _config(self, jobs: int, context: int) -> Config:
        return Config(
            model=self.model,
            weights=self.weights,
            kv_cache_dtype=self.kv_cache_dtype,
            threads=self.threads,
            device="cpu",
            policy="fcfs",
            max_batch_jobs=jobs,
            max_batch_tokens=jobs * context,
            prefill_chunk_tokens=0,
            prefix_cache=False,
        )


def _weight_bytes(model: Any) -> float:
    """Of a number in the matrices as they are kept, on average."""
    sizes = [_size(product) for product in _products(model)]
    return sum(num_bytes for num_bytes, _ in sizes) / sum(numbers for _, numbers in sizes)


def _products(model: Any) -> Iterator[Any]:
    for layer in model.layers if hasattr(model, "layers") else model.blocks:
        parts = layer.parts() if hasattr(layer, "parts") else layer
        names = ("qkv", "out", "gated", "up", "down")
        yield from (getattr(parts, name) for name in names if hasattr(parts, name))
    yield model.head.vocabulary


def _size(product: Any) -> tuple[float, int]:
    """Bytes and numbers of its matrix, which may be within a norm or a gate."""
    while hasattr(product, "product"):
        product = product.product
    if hasattr(product, "number_bytes"):
        return product.numbers * product.number_bytes, product.numbers
    return product.weight.nbytes, product.weight.numel()


def _medians(seconds: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds by part, the largest first."""
    medians = {name: 1000 * statistics.median(parts[name] for parts in seconds) for name in seconds[0]}
    return dict(sorted(medians.items(), key=lambda part: -part[1]))
