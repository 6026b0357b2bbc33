import re
from pathlib import Path

import pytest
import torch
from fakes_worker import BLOCK_TOKENS, DEVICES, SPEC, make_cache

from worker.kv_cache import block_bytes


def random_kv(tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (2, tokens, SPEC.num_kv_heads, SPEC.head_dim)
    k, v = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return k, v


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_written_to_slots_is_read_from_their_blocks_in_order(device: str) -> None:
    cache = make_cache(device)
    k, v = random_kv(6, device)
    slots = torch.tensor([7 * 4, 7 * 4 + 1, 7 * 4 + 2, 7 * 4 + 3, 2 * 4, 2 * 4 + 1], device=device)
    cache.write(1, cache.write_index(slots), k, v)
    tables = torch.tensor([[7, 2]], device=device)
    context = cache.gather(tables, torch.empty(cache.gather_size(tables), device=device))
    context.read(1)
    assert context.keys.shape == (1, SPEC.num_kv_heads, 2 * BLOCK_TOKENS, SPEC.head_dim)
    assert torch.equal(context.keys[0, :, :6].transpose(0, 1), k)
    assert torch.equal(context.values[0, :, :6].transpose(0, 1), v)


def test_a_write_touches_its_own_layer_and_slots_only() -> None:
    cache = make_cache()
    k, v = random_kv(1, "cpu")
    cache.write(2, cache.write_index(torch.tensor([5 * 4 + 3])), k, v)
    assert torch.equal(cache.device[5, 2, 0, :, 3], k[0])
    assert torch.equal(cache.device[5, 2, 1, :, 3], v[0])
    assert cache.device.count_nonzero() == k.numel() + v.numel()


def test_what_is_not_finite_is_stored_as_zero() -> None:
    cache = make_cache()
    k, v = random_kv(1, "cpu")
    k[0, 0, 0], k[0, 0, 1], v[0, 1, 2] = torch.nan, torch.inf, -torch.inf
    cache.write(0, cache.write_index(torch.tensor([0])), k, v)
    assert cache.device.isfinite().all()
    assert cache.device[0, 0, 0, 0, 0, :2].tolist() == [0.0, 0.0]


def test_fp16_rounds_numbers_and_bounds_those_that_are_too_large_for_it() -> None:
    cache = make_cache(dtype=torch.float16)
    k, v = random_kv(1, "cpu")
    k[0, 0, :5] = torch.tensor([65504.0, 65519.0, 1e5, torch.inf, torch.nan])
    v[0, 1, :3] = torch.tensor([-7e4, -1e38, -torch.inf])
    stored = cache.write(1, cache.write_index(torch.tensor([0])), k, v)
    assert cache.device[0, 1, 0, 0, 0, :5].tolist() == [65504.0, 65504.0, 65504.0, 0.0, 0.0]
    assert cache.device[0, 1, 1, 1, 0, :3].tolist() == [-65504.0, -65504.0, 0.0]
    assert torch.equal(cache.device[0, 1, 0, 1, 0], k[0, 1].half())
    assert torch.equal(stored, cache.device[0, 1, :, :, 0].unsqueeze(1))


def test_the_layers_of_a_block_are_one_contiguous_region_of_the_announced_size() -> None:
    cache = make_cache(num_layers=2)
    assert cache.device[3].is_contiguous()
    assert cache.device[3].nbytes == cache.host[3].nbytes == block_bytes(SPEC, 2, BLOCK_TOKENS, torch.float32)


def test_in_fp16_a_block_takes_half_the_memory() -> None:
    cache = make_cache(num_layers=2, dtype=torch.float16)
    assert cache.device[3].nbytes == cache.host[3].nbytes == block_bytes(SPEC, 2, BLOCK_TOKENS, torch.float16)
    assert 2 * cache.device.nbytes == make_cache(num_layers=2).device.nbytes


def test_in_int8_every_key_and_value_has_a_scale_of_four_bytes() -> None:
    cache = make_cache(num_layers=2, dtype=torch.int8)
    assert cache.device[3].nbytes == cache.host[3].nbytes == block_bytes(SPEC, 2, BLOCK_TOKENS, torch.int8)
    numbers, scales = 2 * 2 * SPEC.num_kv_heads * BLOCK_TOKENS * SPEC.head_dim, 2 * 2 * SPEC.num_kv_heads * BLOCK_TOKENS
    assert cache.device[3].nbytes == numbers + 4 * scales


def test_a_cache_without_host_blocks_is_possible() -> None:
    cache = make_cache(blocks=3, host_blocks=0)
    assert cache.num_blocks == (3, 0)
    assert repr(cache) == "<KvCache 3 device blocks, 0 host blocks, torch.float32>"


@pytest.mark.gpu
def test_the_host_pool_is_pinned_and_let_go_with_the_cache() -> None:
    cache = make_cache("cuda")
    host = cache.host
    assert host.is_pinned()
    assert not host.any()
    del cache
    assert not host.is_pinned()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="no huge pages")
def test_a_pool_has_huge_pages_where_the_kernel_gives_them() -> None:
    cache, smaps = make_cache(), Path("/proc/self/smaps").read_text()
    mappings = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ...([ps])(?:.*\n)+?VmFlags:(.*)", smaps, re.MULTILINE)
    address = cache.device.data_ptr()
    (found,) = [(kind, flags) for first, end, kind, flags in mappings if int(first, 16) <= address < int(end, 16)]
    assert found[0] == "p"  # private: what may be shared has small pages only
    assert "hg" in found[1].split()
