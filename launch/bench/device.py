"""What `skipjoin bench gpu` times: a model with random weights on a device. Prints nothing, loads torch."""

import gc
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Config, Stored
from common.model_spec import ModelSpec
from common.records import Entry, Plan, Sampling, pack_blocks
from common.topology import partition
from gateway.generation import Generation
from gateway.scheduling.cost import LinearCost
from gateway.scheduling.scheduler import Scheduler
from worker.copier import Pairs, open_copier
from worker.device import HostShare, Placement, place
from worker.kv_cache import KvCache, block_bytes
from worker.link import LocalLink
from worker.models.llama import load_llama
from worker.models.stored_matrix import StoredMatrix
from worker.runner import Runner

_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
_COST = LinearCost(decode=0.01, prefill_per_token=0.00005)
_KV_SHARE = 0.8  # of the memory that the weights leave
_WARM_UP = 3  # times, before those that are timed
_COPIED_BLOCKS = 64  # half of them each way


class RandomWeights:
    """A checkpoint that was never trained; implements Weights. A tensor's numbers depend on its name alone."""

    stored: Stored = "exact"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self._dtype = dtype

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Small numbers, and ones for norms: activations stay finite."""
        tensor = torch.ones(shape, dtype=dtype or self._dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        return tensor if len(shape) == 1 else tensor.normal_(std=0.02, generator=generator)

    def matrix(self, name: str, out: int, ins: int) -> StoredMatrix:
        return StoredMatrix.of(self.get(name, out, ins), self.stored)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Seconds of an iteration, of copies, and of an iteration that makes the copies."""

    iteration_s: float
    copies_s: float
    both_s: float
    bytes_copied: int

    @property
    def hidden(self) -> float:
        """The share that is hidden of the shorter one's time."""
        return (self.iteration_s + self.copies_s - self.both_s) / min(self.iteration_s, self.copies_s)


class DeviceBench:
    """A model on a device."""

    def __init__(self, spec: ModelSpec, placement: Placement, config: Config, *, tokens: int, iterations: int) -> None:
        """config: of the batches. tokens: of all contexts of a batch, for which there is room if memory allows it."""
        device, dtype, jobs = placement.device, placement.dtype, config.batch_jobs
        self._config, self._iterations, self._block_tokens = config, iterations, config.block_tokens
        (stage,) = partition(spec, 1)
        model = load_llama(spec, stage, RandomWeights(device, dtype), lambda done, total: None)
        self._block_bytes = block_bytes(spec, spec.num_layers, config.block_tokens, placement.kv_dtype)
        blocks = self._blocks(tokens) + jobs + _COPIED_BLOCKS  # A job's last block is not full.
        self._cache = KvCache(
            spec,
            num_layers=spec.num_layers,
            block_tokens=config.block_tokens,
            num_device_blocks=_affordable(blocks, self._block_bytes, device),
            num_host_blocks=_COPIED_BLOCKS,
            device=device,
            dtype=placement.kv_dtype,
        )
        self._copier = open_copier(self._cache)

        def runner(graph_jobs: int) -> Runner:
            link = LocalLink(None, None, 0.0)
            return Runner(
                model,
                stage,
                self._cache,
                link,
                hidden_size=spec.hidden_size,
                dtype=dtype,
                timeout_s=60.0,
                graph_jobs=graph_jobs,
            )

        self._runner, self._plain = runner(jobs if config.cuda_graphs else 0), runner(0)
        self._runner.warm_up()

    def fits(self, jobs: int, tokens: int) -> bool:
        """Whether there is memory for so many jobs of so many tokens."""
        return jobs * self._blocks(tokens) <= len(self._cache.device) - _COPIED_BLOCKS

    def decode_s(self, jobs: int, context: int, *, graphs: bool = True) -> float:
        """An iteration of jobs, each of whose contexts has that many tokens, the new one with them."""
        return self._iteration_s(self._decoding(jobs, context), graphs=graphs)

    def prompt_s(self, tokens: int) -> float:
        """An iteration of one prompt."""
        return self._iteration_s([Entry(0, 0, [1] * tokens, pack_blocks(range(self._blocks(tokens))), _GREEDY)])

    def overlap(self, jobs: int, context: int) -> Overlap:
        """A decode iteration, and copies in both directions."""
        free, half = len(self._cache.device) - _COPIED_BLOCKS, _COPIED_BLOCKS // 2
        offloads = [(free + i, i) for i in range(half)]
        uploads = [(half + i, free + half + i) for i in range(half)]
        entries = self._decoding(jobs, context)
        return Overlap(
            self._iteration_s(entries),
            self._iteration_s([], offloads, uploads),
            self._iteration_s(entries, offloads, uploads),
            _COPIED_BLOCKS * self._block_bytes,
        )

    def generate_s(self, rounds: list[list[list[int]]], output_tokens: int) -> float:
        """Until all prompts of the last round have so many tokens, batched by the scheduler; the others warm up."""
        return [self._generate_s(prompts, output_tokens) for prompts in rounds][-1]

    def _generate_s(self, prompts: list[list[int]], output_tokens: int) -> float:
        scheduler = Scheduler(self._config, _COST, len(self._cache.device), 0)
        begun = time.perf_counter()
        for job, prompt in enumerate(prompts):
            scheduler.submit(job, Generation(prompt=prompt, max_tokens=output_tokens), 0.0)
        while (plan := scheduler.plan(time.perf_counter() - begun)) is not None:
            result = self._runner.run(plan, self._copier.start(plan.offloads, plan.uploads))
            assert result is not None
            scheduler.commit(result, time.perf_counter() - begun)
        return time.perf_counter() - begun

    def _iteration_s(
        self, entries: list[Entry], offloads: Pairs | None = None, uploads: Pairs | None = None, *, graphs: bool = True
    ) -> float:
        plan, runner = (
            Plan(1, 1, entries, offloads or [], uploads or [], False),
            self._runner if graphs else self._plain,
        )
        return median_s(lambda: runner.run(plan, self._copier.start(plan.offloads, plan.uploads)), self._iterations)

    def _decoding(self, jobs: int, context: int) -> list[Entry]:
        each = self._blocks(context)
        return [Entry(i, context - 1, [1], pack_blocks(range(i * each, (i + 1) * each)), _GREEDY) for i in range(jobs)]

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)


def place_on(device: str, spec: ModelSpec) -> Placement:
    """Raises ConfigError where there is no such device."""
    return place(Config(device="cuda" if device == "cuda" else "cpu"), spec, HostShare())


def median_s(action: Callable[[], object], times: int) -> float:
    """Of an action that ends when the device is done."""
    for _ in range(_WARM_UP):
        action()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def transformers_s(
    spec: ModelSpec, placement: Placement, rounds: list[list[list[int]]], output_tokens: int
) -> float | None:
    """As DeviceBench.generate_s, by transformers' continuous batching, with the same weights; None: not installed."""
    try:
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - may be absent
    except ImportError:
        return None
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
    )
    with placement.device:
        model = LlamaForCausalLM._from_config(config, dtype=placement.dtype).eval()
    weights = RandomWeights(placement.device, placement.dtype)
    for name, parameter in model.named_parameters():
        parameter.data = weights.get(name, *parameter.shape)
    generation = GenerationConfig(max_new_tokens=output_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    gc.collect()  # Graphs and what they hold refer to each other.
    seconds = None
    for prompts in rounds:
        begun = time.perf_counter()
        answers = model.generate_batch(prompts, generation_config=generation, persistent_manager=True)
        seconds = time.perf_counter() - begun
        assert all(len(answer.generated_tokens) == output_tokens for answer in answers.values())
    return seconds


def _affordable(blocks: int, bytes_per_block: int, device: torch.device) -> int:
    if device.type != "cuda":
        return blocks
    free, _ = torch.cuda.mem_get_info(device)
    return min(blocks, int(free * _KV_SHARE) // bytes_per_block)
