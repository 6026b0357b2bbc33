"""Paged attention against the dense one, job by job."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from fakes_attention import DenseAttention
from fakes_worker import BLOCK_TOKENS, DEVICES, SPEC, make_cache
from torch import Tensor

from common.records import Entry, pack_blocks
from worker.attention import paged
from worker.attention.native import open_kernel
from worker.attention.paged import PagedAttention, Scratch
from worker.copier import open_copier
from worker.inputs import Inputs, build_inputs
from worker.models.stage_model import Attention

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
SCALE = 0.3
NATIVE = " native"
LAYERS = 2


@dataclass
class Job:
    """A job whose queries, keys and values are random, and what dense attention makes of them."""

    q: Tensor  # [layers, tokens, heads, head_dim]
    k: Tensor  # [layers, tokens, kv_heads, head_dim]
    v: Tensor
    blocks: list[int]
    expected: Tensor  # [layers, tokens, heads * head_dim]
    done: int = 0


class World:
    """One cache and some jobs in it; `step` runs an iteration and checks every row of its output."""

    def __init__(
        self,
        backend: str,
        window: int | None,
        heads: int = 4,
        *,
        blocks: int = 64,
        kv_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device = backend.removesuffix(NATIVE)
        self.window = window
        self.heads = heads
        self.cache = make_cache(device, num_layers=LAYERS, blocks=blocks, host_blocks=blocks, dtype=kv_dtype)
        self.free = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).tolist()
        self.scratch = Scratch(self.cache)
        self.kernel = open_kernel(self.cache) if backend.endswith(NATIVE) else None
        assert self.kernel or not backend.endswith(NATIVE), "no C compiler"
        self.jobs: list[Job] = []

    def add(self, *lengths: int) -> list[Job]:
        added = [self._job(length, seed=100 + len(self.jobs) + i) for i, length in enumerate(lengths)]
        self.jobs += added
        return added

    def _job(self, length: int, seed: int) -> Job:
        generator = torch.Generator().manual_seed(seed)
        random: Callable[[int], Tensor] = lambda heads: torch.randn(  # noqa: E731
            LAYERS, length, heads, SPEC.head_dim, generator=generator
        ).to(self.device)
        q, k, v = random(self.heads), random(SPEC.num_kv_heads), random(SPEC.num_kv_heads)
        dense = DenseAttention()
        kept_k, kept_v = (numbers.to(self.cache.dtype).float() for numbers in (k, v))
        expected = [dense(i, q[i], kept_k[i], kept_v[i], scale=SCALE, window=self.window) for i in range(LAYERS)]
        blocks = [self.free.pop() for _ in range(-(-length // BLOCK_TOKENS))]
        return Job(q, k, v, blocks, torch.stack(expected))

    def attention(self, inputs: Inputs) -> Attention:
        return self.kernel.attention(inputs) if self.kernel else PagedAttention(self.cache, self.scratch, inputs)

    def step(self, *shares: tuple[Job, int]) -> None:
        """Compute the next `count` tokens of each job in one batch."""
        entries = [
            Entry(i, job.done, [0] * count, pack_blocks(job.blocks), None) for i, (job, count) in enumerate(shares)
        ]
        inputs = build_inputs(entries, BLOCK_TOKENS, torch.device(self.device))
        attention = self.attention(inputs)
        spans = [(job, slice(job.done, job.done + count)) for job, count in shares]
        for layer in range(LAYERS):
            q, k, v = (torch.cat([getattr(job, name)[layer, span] for job, span in spans]) for name in "qkv")
            out = attention(layer, q, k, v, scale=SCALE, window=self.window)
            torch.testing.assert_close(out, torch.cat([job.expected[layer, span] for job, span in spans]))
        for job, count in shares:
            job.done += count


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[*DEVICES, pytest.param("cpu" + NATIVE, marks=needs_compiler)])
def backend(request: pytest.FixtureRequest) -> str:
    """Where attention runs: a device, with torch alone or with the native kernel."""
    return str(request.param)


@pytest.fixture(params=[None, 1, 5, 16], ids=lambda window: f"window={window}")
def window(request: pytest.FixtureRequest) -> int | None:
    return request.param


@pytest.mark.parametrize("heads", [2, 4, 6])
def test_a_prompt_and_its_tokens_equal_dense_attention(backend: str, window: int | None, heads: int) -> None:
    world = World(backend, window, heads)
    (job,) = world.add(20)
    world.step((job, 9))
    for _ in range(11):
        world.step((job, 1))


def test_chunks_of_any_size_equal_dense_attention(backend: str, window: int | None) -> None:
    world = World(backend, window)
    (job,) = world.add(40)
    for count in (3, 7, 1, 14, 2, 13):
        world.step((job, count))


def test_long_chunks_are_attended_in_parts(backend: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "_CHUNK_QUERIES", 4)
    world = World(backend, window)
    (job,) = world.add(40)
    for count in (5, 22, 13):
        world.step((job, count))


def test_prompts_chunks_and_decoding_jobs_mix_in_one_batch(backend: str, window: int | None) -> None:
    world = World(backend, window)
    prompt, chunked, short, long = world.add(10, 30, 8, 50)
    world.step((chunked, 11), (short, 3), (long, 40))
    world.step((short, 1), (prompt, 9), (long, 1), (chunked, 12))
    world.step((chunked, 1), (long, 1), (prompt, 1), (short, 1))


def test_jobs_of_very_different_length_decode_together(
    backend: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "_PADDING_SLOTS", 20)
    world = World(backend, window)
    jobs = world.add(3, 70, 5, 64, 4, 12, 33)
    world.step(*((job, job.q.shape[1] - 2) for job in jobs))
    for _ in range(2):
        world.step(*((job, 1) for job in jobs))


def test_blocks_moved_through_host_memory_to_other_places_hold_the_same_job(backend: str) -> None:
    world = World(backend, None)
    moved, other = world.add(30, 30)
    world.step((moved, 17), (other, 17))
    copier = open_copier(world.cache)
    used = moved.blocks[:5]
    copier.start([(block, i + 3) for i, block in enumerate(used)], []).wait(10.0)
    world.cache.device[used] = 77.0  # Somebody else's.
    world.step((other, 1))
    new = [world.free.pop() for _ in moved.blocks]
    copier.start([], [(i + 3, block) for i, block in enumerate(new[:5])]).wait(10.0)
    moved.blocks = new
    for _ in range(12):
        world.step((moved, 1), (other, 1))
    copier.close()


def test_stale_numbers_behind_a_jobs_end_do_not_matter(backend: str) -> None:
    world = World(backend, 5)
    jobs = world.add(6, 13)
    world.cache.device.fill_(1e4)
    world.step(*((job, 5) for job in jobs))
    for _ in range(1):
        world.step(*((job, 1) for job in jobs))


def test_a_job_of_nan_keys_does_not_spoil_its_neighbours_or_the_next_owner(backend: str) -> None:
    world = World(backend, None, blocks=12)
    sick, healthy = world.add(10, 12)
    sick.k[:] = torch.nan
    sick.v[:] = torch.inf
    sick.expected[:] = 0.0  # Its own rows are not looked at here: zeros are what it stores.
    inputs = build_inputs(
        [Entry(0, 0, [0] * 9, pack_blocks(sick.blocks), None), Entry(1, 0, [0] * 9, pack_blocks(healthy.blocks), None)],
        BLOCK_TOKENS,
        torch.device(world.device),
    )
    attention = world.attention(inputs)
    for layer in range(LAYERS):
        q, k, v = (torch.cat((getattr(sick, n)[layer, :9], getattr(healthy, n)[layer, :9])) for n in "qkv")
        out = attention(layer, q, k, v, scale=SCALE, window=None)
        torch.testing.assert_close(out[9:], healthy.expected[layer, :9])
    healthy.done = 9
    world.free += sick.blocks
    (heir,) = world.add(11)
    world.step((heir, 9), (healthy, 1))
    world.step((heir, 1), (healthy, 1))


def test_queries_that_are_slices_of_a_joined_projection_are_fine(backend: str) -> None:
    world = World(backend, None)
    (job,) = world.add(6)
    job.q = torch.cat((job.q, job.k), 2)[:, :, : world.heads]
    assert not job.q[0].is_contiguous()
    world.step((job, 4))
    world.step((job, 1))


def test_prompts_chunks_and_decoding_jobs_meet_keys_and_values_as_fp16_keeps_them(
    device: str, window: int | None
) -> None:
    world = World(device, window, kv_dtype=torch.float16)
    prompt, chunked, decoded = world.add(12, 30, 20)
    world.step((prompt, 11), (chunked, 8), (decoded, 5))
    world.step((prompt, 1), (chunked, 21), (decoded, 1))
    for _ in range(14):
        world.step((decoded, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_decoding_is_as_exact_as_its_inputs(device: str, dtype: torch.dtype) -> None:
    world = World(device, None, kv_dtype=dtype)
    (job,) = world.add(30)
    q, k, v = (getattr(job, name)[0].to(dtype) for name in "qkv")
    expected = DenseAttention()(0, q.float(), k.float(), v.float(), scale=SCALE, window=None)
    for start, count in ((0, 20), (20, 9), (29, 1)):
        entry = Entry(0, start, [0] * count, pack_blocks(job.blocks), None)
        inputs = build_inputs([entry], BLOCK_TOKENS, torch.device(device))
        attention = PagedAttention(world.cache, world.scratch, inputs)
        span = slice(start, start + count)
        out = attention(0, q[span], k[span], v[span], scale=SCALE, window=None)
        torch.testing.assert_close(out.float(), expected[span], atol=2e-2, rtol=2e-2)
