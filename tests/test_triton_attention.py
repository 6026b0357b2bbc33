"""The Triton kernels against the plain path: interpreted where there is no GPU, as themselves where there is one."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fakes_worker import SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.records import Entry, pack_blocks, unpack_blocks
from worker.attention.paged import PagedAttention, Scratch
from worker.attention.triton_paged import TritonKernel, open_kernel
from worker.attention.triton_work import SPLIT_SLOTS, Work, lay_out
from worker.inputs import Inputs, build_inputs
from worker.kv_cache import KvCache
from worker.models.stage_model import Attention

triton_kernels = pytest.importorskip(
    "worker.attention.triton_kernels", reason="no Triton", exc_type=ModuleNotFoundError
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
LAYER = 1
SPREAD = [1, 2, 15, 16, 17, 100, SPLIT_SLOTS, SPLIT_SLOTS + 1, 700]  # contexts, one token of them new


@dataclass(frozen=True)
class Shape:
    """Of the heads and of the cache."""

    group: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    block_tokens: int = 16
    dtype: torch.dtype = torch.float32
    slots: int = 2560  # of all blocks

    def cache(self) -> KvCache:
        """Two layers of random numbers, the same for the same shape."""
        cache = KvCache(
            replace(SPEC, num_kv_heads=self.kv_heads, head_dim=self.head_dim),
            num_layers=2,
            block_tokens=self.block_tokens,
            num_device_blocks=self.slots // self.block_tokens,
            num_host_blocks=0,
            device=DEVICE,
            dtype=self.dtype,
        )
        cache.device.copy_(torch.randn(cache.device.shape, generator=torch.Generator().manual_seed(3)))
        return cache

    def qkv(self, batch: list[Entry]) -> list[Tensor]:
        """Slices of a joined projection, the same for the same job."""
        heads = self.kv_heads * self.group
        rows = [
            torch.randn(
                len(e.tokens),
                heads + 2 * self.kv_heads,
                self.head_dim,
                generator=torch.Generator().manual_seed(e.job_id),
            )
            for e in batch
        ]
        return list(torch.cat(rows).to(DEVICE, self.dtype).split((heads, self.kv_heads, self.kv_heads), 1))


def entries(cache: KvCache, shares: list[tuple[int, int]]) -> list[Entry]:
    """Jobs by tokens that are cached and tokens that are new, on scattered blocks."""
    free = torch.randperm(len(cache.device), generator=torch.Generator().manual_seed(4)).tolist()
    blocks = [-(-(start + count) // cache.block_tokens) for start, count in shares]
    return [
        Entry(i, start, [0] * count, pack_blocks(free.pop() for _ in range(needed)), None)
        for i, ((start, count), needed) in enumerate(zip(shares, blocks, strict=True))
    ]


def decoding(cache: KvCache, contexts: list[int]) -> list[Entry]:
    return entries(cache, [(context - 1, 1) for context in contexts])


def attend(attention: Attention, shape: Shape, batch: list[Entry], window: int | None = None) -> Tensor:
    return attention(LAYER, *shape.qkv(batch), scale=0.3, window=window)


def inputs_of(cache: KvCache, batch: list[Entry]) -> Inputs:
    return build_inputs(batch, cache.block_tokens, DEVICE)


def computed(cache: KvCache, shape: Shape, batch: list[Entry], window: int | None = None) -> Tensor:
    return attend(TritonKernel(cache, triton_kernels).attention(inputs_of(cache, batch)), shape, batch, window)


def expected(cache: KvCache, shape: Shape, batch: list[Entry], window: int | None = None) -> Tensor:
    return attend(PagedAttention(cache, Scratch(cache), inputs_of(cache, batch)), shape, batch, window)


shapes = st.builds(
    Shape,
    group=st.sampled_from([1, 2, 3, 8, 20]),
    kv_heads=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([8, 16, 24, 64, 80]),
    block_tokens=st.sampled_from([1, 12, 16]),
)
shares = st.lists(
    st.tuples(st.sampled_from([0, 1, 15, 16, 63, 255, 256, 300]), st.sampled_from([1, 1, 1, 2, 17, 33])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=10)
@given(shapes, shares, st.sampled_from([None, None, 1, 40]))
def test_any_mixture_of_prompts_chunks_and_decoding_jobs_equals_the_plain_path(
    shape: Shape, shares: list[tuple[int, int]], window: int | None
) -> None:
    cache, reference = shape.cache(), shape.cache()
    batch = entries(cache, shares)
    torch.testing.assert_close(
        computed(cache, shape, batch, window), expected(reference, shape, batch, window), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(cache.device, reference.device)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],  # The interpreter cannot multiply bf16.
)
def test_sixteen_bit_numbers_are_as_exact_as_in_the_plain_path(dtype: torch.dtype) -> None:
    shape = Shape(head_dim=64, dtype=dtype)
    cache, reference = shape.cache(), shape.cache()
    batch = entries(cache, [(299, 1), (20, 1), (10, 30)])
    torch.testing.assert_close(computed(cache, shape, batch), expected(reference, shape, batch), atol=2e-2, rtol=2e-2)


def test_a_long_context_is_merged_from_many_splits() -> None:
    shape = Shape(kv_heads=1, slots=6400)
    cache = shape.cache()
    batch = decoding(cache, [SPLIT_SLOTS * 20 + 5, 3])
    cache.device[list(unpack_blocks(batch[0].blocks)[-40:]), LAYER, 0] *= (
        3.0  # The last splits weigh more than the first.
    )
    torch.testing.assert_close(computed(cache, shape, batch), expected(cache, shape, batch), atol=1e-5, rtol=1e-5)


def test_a_jobs_numbers_are_the_same_bits_in_any_batch() -> None:
    shape = Shape()
    cache = shape.cache()
    batch = entries(cache, [*((context - 1, 1) for context in SPREAD), (30, 20)])
    together = computed(cache, shape, batch)
    alone = torch.cat([computed(cache, shape, [entry]) for entry in batch])
    assert torch.equal(alone, together)
    backwards = computed(cache, shape, batch[:-1][::-1])
    assert torch.equal(backwards.flip(0), together[: len(SPREAD)])


def test_nan_in_the_blocks_of_others_and_behind_a_jobs_end_does_not_leak() -> None:
    shape = Shape()
    cache = shape.cache()
    batch = entries(cache, [(4, 1), (39, 1), (270, 1), (3, 9)])
    before = computed(cache, shape, batch)
    for entry in batch:
        end = entry.start + len(entry.tokens)
        cache.device[unpack_blocks(entry.blocks)[-1], :, :, :, end % cache.block_tokens :] = torch.nan
    cache.device[list(unpack_blocks(batch[1].blocks))] = torch.nan
    owned = {block for entry in batch for block in unpack_blocks(entry.blocks)}
    cache.device[[block for block in range(len(cache.device)) if block not in owned]] = torch.nan
    after = computed(cache, shape, batch)
    others = [0, *range(2, len(after))]
    assert torch.equal(after[others], before[others])
    assert after[1].isnan().all()


def test_what_is_not_finite_is_stored_as_zero() -> None:
    shape = Shape()
    cache = shape.cache()
    (job,) = decoding(cache, [7])
    q, k, v = shape.qkv([job])
    k[:, 0], v[:, 1] = torch.nan, -torch.inf
    TritonKernel(cache, triton_kernels).attention(inputs_of(cache, [job]))(LAYER, q, k, v, scale=1.0, window=None)
    keys, values = cache.device[unpack_blocks(job.blocks)[0], LAYER, :, :, 6]
    assert keys[0].eq(0).all()
    assert values[1].eq(0).all()
    assert torch.equal(keys[1], k[0, 1])
    assert torch.equal(values[0], v[0, 0])


def test_work_may_be_exchanged_in_place_and_the_rows_beyond_it_do_nothing() -> None:
    shape = Shape()
    cache = shape.cache()
    room = Work.room(4, 8, cache.block_tokens, DEVICE)
    attention = TritonKernel(cache, triton_kernels).attention_of(room)
    for contexts in ([700, 20, 3], [5], [300, 300]):
        batch = decoding(cache, contexts)
        padding = [Entry(90 + i, 0, [0], pack_blocks([0]), None) for i in range(4 - len(batch))]
        wanted = computed(cache, shape, batch)
        held = cache.device.clone()
        room.take(lay_out(inputs_of(cache, batch), cache.block_tokens, 1))
        out = attend(attention, shape, batch + padding)
        assert torch.equal(out[: len(batch)], wanted)
        assert torch.equal(cache.device, held)


def test_trying_the_kernels_out_leaves_the_cache_as_it_was() -> None:
    cache = Shape().cache()
    held = cache.device.clone()
    TritonKernel(cache, triton_kernels).try_out()
    assert torch.equal(cache.device, held)


def test_a_context_is_split_at_fixed_slots() -> None:
    cache = Shape().cache()
    work = lay_out(inputs_of(cache, decoding(cache, [256, 257, 600])), cache.block_tokens, 1)
    assert work.counts.tolist() == [3, 3, 6, 0]
    assert work.jobs.tolist() == [[0, 0, 1], [1, 1, 2], [2, 3, 3]]
    assert work.splits.tolist() == [
        [0, 255, 1, 0, 0],
        [1, 256, 1, 16, 0],
        [1, 256, 1, 16, 256],
        [2, 599, 1, 33, 0],
        [2, 599, 1, 33, 256],
        [2, 599, 1, 33, 512],
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_cpu_is_served_by_others() -> None:
    assert open_kernel(Shape().cache()) is None


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """What the interpreter lets pass the compiler may not: types, shapes, and more shared memory than there is."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compile_kernels"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["store", "attend", "attend", "merge"] * 2
