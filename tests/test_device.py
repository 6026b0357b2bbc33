import shutil
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from fakes_worker import CONFIG, SPEC

from common.config import ConfigError, KvDtype
from worker.attention.native import attends_in_tiles
from worker.device import HostShare, Placement, kv_budget, place

CPU = Placement(torch.device("cpu"), torch.float32, torch.float32, 1)


def test_ranks_that_share_their_cores_divide_them() -> None:
    cores = frozenset(range(8))
    assert HostShare.of(1, [("a", cores)] * 2) == HostShare(index=1, stages=2, cores=4, only_host=True)


def test_ranks_that_are_bound_to_cores_of_their_own_use_all_of_these() -> None:
    places = [("a", frozenset(range(0, 8))), ("a", frozenset(range(8, 16)))]
    assert [HostShare.of(i, places).cores for i in range(2)] == [8, 8]


def test_hosts_are_counted_apart() -> None:
    cores = frozenset(range(4))
    places = [("a", cores), ("b", cores), ("a", cores)]
    assert HostShare.of(2, places) == HostShare(index=1, stages=2, cores=2, only_host=False)
    assert HostShare.of(1, places) == HostShare(index=0, stages=1, cores=4, only_host=False)


def test_more_ranks_than_cores_still_get_one_each() -> None:
    assert HostShare.of(0, [("a", frozenset([0]))] * 3).cores == 1


def test_a_cpu_computes_in_fp32_unless_told_otherwise() -> None:
    spec = replace(SPEC, dtype="bf16")
    assert place(CONFIG, spec, HostShare()).dtype == torch.float32
    assert place(replace(CONFIG, dtype="bf16"), spec, HostShare()).dtype_name == "bf16"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "fp32"),
        ({"kv_cache_dtype": "fp16"}, "fp32, KV in fp16"),
        ({"weights": "bf16"}, "fp32, weights in bf16, KV in fp16"),
        ({"weights": "int8"}, "fp32, weights in int8, KV in fp16"),
        ({"weights": "int8", "kv_cache_dtype": "exact"}, "fp32, weights in int8"),
        ({"dtype": "fp16"}, "fp16"),
    ],
)
def test_keys_and_values_are_kept_as_exactly_as_matrices_unless_told_otherwise(
    options: dict[str, Any], name: str
) -> None:
    placement = place(replace(CONFIG, **options), SPEC, HostShare())
    assert placement.dtype_name == name
    assert placement.kv_dtype == (torch.float16 if "KV" in name else placement.dtype)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_the_cpu_has_amx_keys_and_values_are_kept_as_its_tiles_want_them() -> None:
    kept = place(replace(CONFIG, weights="int8"), replace(SPEC, head_dim=64), HostShare()).kv_dtype
    assert kept == (torch.bfloat16 if attends_in_tiles(64, CONFIG.block_tokens) else torch.float16)


@pytest.mark.parametrize("kept", ["bf16", "int8"])
def test_tiles_are_refused_where_there_are_none(kept: KvDtype) -> None:
    with pytest.raises(ConfigError, match=f"{kept} is for CPUs with AMX.*fp16 serves everywhere"):
        place(replace(CONFIG, kv_cache_dtype=kept), replace(SPEC, head_dim=20), HostShare())


def test_where_torch_attends_keys_and_values_are_exact_unless_told_otherwise() -> None:
    spec = replace(SPEC, head_dim=20)
    assert place(replace(CONFIG, weights="int8"), spec, HostShare()).kv_dtype == torch.float32
    assert place(replace(CONFIG, weights="int8", kv_cache_dtype="fp16"), spec, HostShare()).kv_dtype == torch.float16


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"weights": "int8"}, "--weights int8"),
        ({"kv_cache_dtype": "fp16"}, "--kv-cache-dtype fp16"),
    ],
)
def test_only_stages_that_compute_in_fp32_round_what_they_keep(option: dict[str, Any], named: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} is for stages that compute in fp32 on a CPU"):
        place(replace(CONFIG, dtype=dtype, **option), SPEC, HostShare())


def test_the_placement_says_what_it_is_and_torch_obeys_it() -> None:
    before = torch.get_num_threads()
    assert place(replace(CONFIG, threads=None), SPEC, HostShare(cores=1)).name == "cpu, 1 thread"
    assert torch.get_num_threads() == 1
    assert place(replace(CONFIG, threads=2), SPEC, HostShare(cores=1)).name == "cpu, 2 threads"
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_asking_for_cuda_without_a_device_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        place(replace(CONFIG, device="cuda"), SPEC, HostShare())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_stages_of_one_host_spread_over_its_gpus_in_the_checkpoints_type() -> None:
    spec = replace(SPEC, dtype="bf16")
    gpus = torch.cuda.device_count()
    placements = [place(replace(CONFIG, device="auto"), spec, HostShare(index=i, stages=9)) for i in range(gpus + 1)]
    assert [p.device.index for p in placements] == [*range(gpus), 0]
    assert (placements[0].dtype, placements[0].kv_dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_keeps_keys_and_values_as_they_are_computed() -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp16 is for stages that compute in fp32 on a CPU"):
        place(replace(CONFIG, device="cuda", dtype="fp32", kv_cache_dtype="fp16"), SPEC, HostShare())


def test_exact_numbers_of_blocks_go_before_sizes() -> None:
    config = replace(CONFIG, kv_device_blocks=5, kv_device_memory="1G", kv_host_blocks=0)
    assert kv_budget(config, CPU, HostShare(), 1000) == (5000, 0)


def test_sizes_are_per_stage() -> None:
    config = replace(CONFIG, kv_device_memory="2MiB", kv_host_memory="1G")
    assert kv_budget(config, CPU, HostShare(stages=4), 1000) == (2 * 2**20, 2**30)


def test_by_default_the_stages_of_a_host_divide_shares_of_its_free_memory() -> None:
    device, host = kv_budget(CONFIG, CPU, HostShare(stages=2), 1000)
    available = psutil.virtual_memory().available
    assert 0 < device <= 0.15 * available
    assert device / host == pytest.approx(0.15 / 0.25, rel=0.2)


@pytest.mark.parametrize(("quota", "threads"), [(float("inf"), 8), (5.5, 3), (1.0, 1), (64.0, 8)])
def test_a_quota_of_processors_is_divided_by_the_stages_of_a_host(
    monkeypatch: pytest.MonkeyPatch, quota: float, threads: int
) -> None:
    monkeypatch.setattr("worker.cgroups.cpu_quota", lambda: quota)
    before = torch.get_num_threads()
    assert place(replace(CONFIG, threads=None), SPEC, HostShare(stages=2, cores=8)).threads == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "host_cores", "warns"), [(None, 8, True), (1, 8, False), (None, 4, False)])
def test_a_stage_that_is_bound_to_one_core_of_many_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    threads: int | None,
    host_cores: int,
    warns: bool,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: host_cores)
    before = torch.get_num_threads()
    place(replace(CONFIG, threads=threads), SPEC, HostShare(stages=2, cores=1))
    torch.set_num_threads(before)
    assert ("1 of the host's 8 cores; for more: srun --cpus-per-task" in caplog.text) == warns
