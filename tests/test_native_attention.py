"""The native kernel against the plain path."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_worker import SPEC
from torch import Tensor

from common.records import Entry, pack_blocks, unpack_blocks
from worker.attention.native import Kernel, attends_in_tiles, open_kernel
from worker.attention.paged import PagedAttention, Scratch
from worker.inputs import build_inputs
from worker.kv_cache import KvCache

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

needs_amx = pytest.mark.skipif(not attends_in_tiles(64, 16), reason="no AMX")

LAYERS, BLOCKS = 2, 80
LENGTHS = [1, 2, 15, 16, 17, 33, 100, 319]


def random_cache(
    *, kv_heads: int = 3, head_dim: int = 64, block_tokens: int = 16, dtype: torch.dtype = torch.float32
) -> KvCache:
    cache = KvCache(
        replace(SPEC, num_kv_heads=kv_heads, head_dim=head_dim),
        num_layers=LAYERS,
        block_tokens=block_tokens,
        num_device_blocks=BLOCKS * 16 // block_tokens,
        num_host_blocks=0,
        device=torch.device("cpu"),
        dtype=dtype,
    )
    numbers = torch.randn(*cache.device.shape[:-1], head_dim, generator=torch.Generator().manual_seed(3))
    cache.device.copy_(tiles_of_bytes(*rounded(numbers)) if dtype == torch.int8 else numbers)
    return cache


def rounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as int8, and their scales."""
    scales = numbers.abs().amax(-1) / 127
    return (numbers / scales[..., None]).round().to(torch.int8), scales


def tiled(pool: Tensor) -> Tensor:
    """Blocks of bf16 as kv_tiles.h wants them: keys by pairs of dimensions, values by pairs of slots."""
    keys, values = pool.unbind(2)  # [blocks, layers, kv_heads, block_tokens, head_dim]
    keys = keys.unflatten(4, (-1, 2)).transpose(3, 4).reshape(values.shape)
    values = values.unflatten(3, (-1, 2)).transpose(4, 5).reshape(values.shape)
    return torch.stack([keys, values], 2)


def tiles_of_bytes(numbers: Tensor, scales: Tensor) -> Tensor:
    """Blocks of int8 as kv_tiles.h wants them: keys by dimensions, and in every head's the scales come last."""
    keys, values = numbers.unbind(2)  # [blocks, layers, kv_heads, block_tokens, head_dim]
    both = torch.stack([keys.transpose(3, 4).reshape(values.shape), values], 2).flatten(-2)
    heads = torch.cat([both, scales.float().contiguous().view(torch.int8)], -1)
    return heads.view(*numbers.shape[:-1], -1)


def entries(cache: KvCache, lengths: list[int]) -> list[Entry]:
    """Decoding jobs whose contexts have `lengths`, their own token with them, on scattered blocks."""
    free = torch.randperm(len(cache.device), generator=torch.Generator().manual_seed(4)).tolist()
    needed = [-(-length // cache.block_tokens) for length in lengths]
    return [
        Entry(i, length - 1, [0], pack_blocks(free.pop() for _ in range(blocks)), None)
        for i, (length, blocks) in enumerate(zip(lengths, needed, strict=True))
    ]


def attend(
    cache: KvCache, kernel: Kernel | None, batch: list[Entry], *, group: int = 3, window: int | None = None
) -> Tensor:
    """One layer's attention of random queries, the same for the same job: [jobs, heads * head_dim]."""
    shape = (group + 2, cache.kv_heads, cache.head_dim)
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(e.job_id)) for e in batch]
    q, k, v = torch.stack(rows).split((group, 1, 1), 1)  # [jobs, group | 1 | 1, kv_heads, head_dim]
    inputs = build_inputs(batch, cache.block_tokens, cache.torch_device)
    attention = kernel.attention(inputs) if kernel else PagedAttention(cache, Scratch(cache), inputs)
    heads = q.transpose(1, 2).flatten(1, 2)
    return attention(1, heads, k.squeeze(1), v.squeeze(1), scale=0.3, window=window)


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("block_tokens", [1, 12, 16, 32])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 80), (8, 8), (3, 24)])
def test_it_equals_the_plain_path(group: int, head_dim: int, block_tokens: int, window: int | None) -> None:
    cache = random_cache(head_dim=head_dim, block_tokens=block_tokens)
    batch = entries(cache, LENGTHS)
    expected = attend(cache, None, batch, group=group, window=window)
    actual = attend(cache, open_kernel(cache), batch, group=group, window=window)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 80), (3, 24)])
def test_an_fp16_pool_gives_what_an_fp32_one_with_its_numbers_does(
    group: int, head_dim: int, window: int | None
) -> None:
    half, exact = (random_cache(head_dim=head_dim, dtype=dtype) for dtype in (torch.float16, torch.float32))
    exact.device.copy_(half.device)
    batch = entries(half, LENGTHS)
    actual = attend(half, open_kernel(half), batch, group=group, window=window)
    attend(
        exact, open_kernel(exact), batch, group=group, window=window
    )  # writes keys and values of the batch, unrounded
    torch.testing.assert_close(half.device, exact.device.half(), atol=0, rtol=0)
    exact.device.copy_(half.device)
    expected = attend(exact, None, batch, group=group, window=window)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


@needs_amx
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("block_tokens", [16, 32, 48])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 96), (20, 32), (2, 256), (50, 32)])
def test_tiles_give_what_an_fp32_pool_of_their_numbers_does(
    group: int, head_dim: int, block_tokens: int, window: int | None
) -> None:
    tiles, exact = (
        random_cache(head_dim=head_dim, block_tokens=block_tokens, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    exact.device.copy_(tiles.device)
    tiles.device.copy_(tiled(tiles.device))
    batch = entries(exact, LENGTHS)
    actual = attend(tiles, open_kernel(tiles), batch, group=group, window=window)
    expected = attend(exact, None, batch, group=group, window=window)
    assert torch.equal(tiles.device, tiled(exact.device.bfloat16()))
    torch.testing.assert_close(actual, expected, atol=3e-2, rtol=1e-2)


@needs_amx
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("block_tokens", [16, 48])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 96), (2, 256), (50, 32)])
def test_tiles_of_int8_give_what_an_fp32_pool_of_their_numbers_does(
    group: int, head_dim: int, block_tokens: int, window: int | None
) -> None:
    tiles, exact = (
        random_cache(head_dim=head_dim, block_tokens=block_tokens, dtype=dtype) for dtype in (torch.int8, torch.float32)
    )
    batch = entries(exact, LENGTHS)
    actual = attend(tiles, open_kernel(tiles), batch, group=group, window=window)
    attend(exact, None, batch, group=group, window=window)  # writes keys and values of the batch, unrounded
    numbers, scales = rounded(exact.device)
    off = (tiles.device.int() - tiles_of_bytes(numbers, scales)).abs()
    assert off.flatten(-2)[..., : block_tokens * head_dim].max() <= 1  # a half may be rounded either way
    exact.device.copy_(numbers * scales[..., None])
    expected = attend(exact, None, batch, group=group, window=window)
    torch.testing.assert_close(actual, expected, atol=6e-2, rtol=1e-2)


@needs_amx
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_tiles_hold_no_infinity(dtype: torch.dtype) -> None:
    cache = random_cache(dtype=dtype)
    kernel, (entry,) = open_kernel(cache), entries(cache, [1])
    assert kernel is not None
    v = torch.full((1, 3, 64), torch.inf)
    attention = kernel.attention(build_inputs([entry], 16, cache.torch_device))
    assert attention(0, torch.zeros(1, 3, 64), v, -v, scale=1.0, window=None).isfinite().all()


def test_numbers_beyond_fp16_become_its_largest() -> None:
    cache = random_cache(dtype=torch.float16)
    kernel, (entry,) = open_kernel(cache), entries(cache, [1])
    assert kernel is not None
    k = torch.full((1, 3, 64), 1e6)
    attention = kernel.attention(build_inputs([entry], 16, cache.torch_device))
    out = attention(0, torch.zeros(1, 3, 64), k, -k, scale=1.0, window=None)
    assert (cache.device[unpack_blocks(entry.blocks)[0], 0, 0, :, 0] == 65504).all()
    assert (out == -65504).all()


def test_scores_of_any_size_are_as_exact_as_in_the_plain_path() -> None:
    cache = random_cache()
    cache.device[:, :, 0] *= 100.0
    batch = entries(cache, LENGTHS)
    torch.testing.assert_close(
        attend(cache, open_kernel(cache), batch), attend(cache, None, batch), atol=1e-4, rtol=1e-4
    )


TYPES = [torch.float32, torch.float16, *(pytest.param(t, marks=needs_amx) for t in (torch.bfloat16, torch.int8))]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_jobs_numbers_are_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    cache = random_cache(dtype=dtype)
    kernel, batch = open_kernel(cache), entries(cache, LENGTHS)
    together = attend(cache, kernel, batch)
    alone = torch.cat([attend(cache, kernel, [entry]) for entry in batch])
    assert torch.equal(attend(cache, kernel, batch[::-1]).flip(0), together)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_in_the_blocks_of_others_and_behind_a_jobs_end_does_not_leak(dtype: torch.dtype) -> None:
    cache = random_cache(dtype=dtype)
    kernel, batch = open_kernel(cache), entries(cache, [5, 40, 60])
    expected = attend(cache, kernel, batch)
    for entry in batch:
        last = unpack_blocks(entry.blocks)[-1]
        behind = torch.zeros_like(cache.device[last][None], dtype=torch.float32)
        behind[:, :, :, :, (entry.start + 1) % cache.block_tokens :] = torch.nan
        behind = tiled(behind) if dtype == torch.bfloat16 else behind
        block = cache.device[last]
        if dtype == torch.int8:
            scales = block.flatten(-2)[..., -4 * cache.block_tokens :].view(torch.float32)
            scales += behind[0, ..., 0]
        else:
            block += behind[0].to(dtype)
    if dtype == torch.int8:
        cache.device[list(unpack_blocks(batch[1].blocks))] = -1  # also as a scale: no number
    else:
        cache.device[list(unpack_blocks(batch[1].blocks))] = torch.nan
    actual = attend(cache, kernel, batch)
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])
    assert actual[1].isnan().all()


def test_its_threads_are_those_of_torch() -> None:
    cache = random_cache()
    attend(cache, open_kernel(cache), entries(cache, LENGTHS))
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert len([name for name in libraries if Path(name).name.startswith(("libgomp", "libomp", "libiomp"))]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queries_of_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    assert open_kernel(random_cache(dtype=dtype), dtype) is None


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 80), (torch.float64, 64), (torch.float32, 20)])
def test_other_pools_and_odd_heads_are_left_to_torch(dtype: torch.dtype, head_dim: int) -> None:
    assert open_kernel(random_cache(dtype=dtype, head_dim=head_dim)) is None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("block_tokens", [1, 12, 32])
@pytest.mark.parametrize(("group", "size"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (30, 1.0), (3, 1e-38)])
def test_a_token_gets_the_same_bits_in_a_prompt_in_chunks_and_decoded(
    group: int, size: float, block_tokens: int, window: int | None, dtype: torch.dtype
) -> None:
    if dtype in (torch.bfloat16, torch.int8):
        block_tokens, head_dim = {1: (16, 64), 12: (48, 96), 32: (32, 64)}[block_tokens]
    else:
        head_dim = 8
    length, rows = 200, torch.randn(200, group + 2, 3, head_dim, generator=torch.Generator().manual_seed(5)) * size
    q, k, v = rows.split((group, 1, 1), 1)
    q, k, v = q.transpose(1, 2).flatten(1, 2), k.squeeze(1), v.squeeze(1)

    def computed(*counts: int) -> Tensor:
        cache = random_cache(head_dim=head_dim, block_tokens=block_tokens, dtype=dtype)
        kernel, blocks = open_kernel(cache), list(range(-(-length // block_tokens)))[::-1]
        assert kernel is not None
        out, start = [], 0
        for count in counts:
            inputs = build_inputs(
                [Entry(0, start, [0] * count, pack_blocks(blocks), None)], block_tokens, cache.torch_device
            )
            span = slice(start, start + count)
            out.append(kernel.attention(inputs)(1, q[span], k[span], v[span], scale=0.3, window=window))
            start += count
        return torch.cat(out)

    prompt = computed(length)
    assert torch.equal(computed(*[1] * length), prompt)
    assert torch.equal(computed(3, 20, 1, 1, 33, 17, 125), prompt)
