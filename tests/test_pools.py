"""What the stages of a pipeline agree to hold."""

import pytest
from msgspec.structs import replace

from common.config import Config, ConfigError
from common.records import Ready
from gateway.pools import Pools, agree_on_pools

OFFER = Ready("here", "cpu, 2 threads", "fp32", "f00d", block_bytes=100, device_bytes=2000, host_bytes=9000)
GPU = replace(OFFER, device="cuda:0 GPU", gpu="a")


def test_the_smallest_stage_decides() -> None:
    offers = [OFFER, replace(OFFER, block_bytes=50, device_bytes=600, host_bytes=800)]
    assert agree_on_pools(offers, Config()) == Pools(12, 16, 150)


def test_exact_numbers_are_kept_whatever_the_stages_offer() -> None:
    assert agree_on_pools([OFFER, GPU], Config(kv_device_blocks=300, kv_host_blocks=0)) == Pools(300, 0, 200)


def test_stages_on_one_gpu_divide_it_whatever_number_each_knows_it_by() -> None:
    # Slurm shows each task its own GPU only, as the first one: by their number all four would be the same.
    one_each = [replace(GPU, gpu=gpu) for gpu in "abcd"]
    assert agree_on_pools(one_each, Config()).num_device_blocks == 20
    shared = [replace(GPU, gpu=gpu) for gpu in "abab"]
    assert agree_on_pools(shared, Config()).num_device_blocks == 10
    assert agree_on_pools([GPU, replace(GPU, gpu="b"), GPU, OFFER], Config()).num_device_blocks == 10


def test_a_size_that_was_asked_for_is_each_stages_own() -> None:
    assert agree_on_pools([GPU, GPU], Config(kv_device_memory="2000")).num_device_blocks == 20


def test_a_gpus_host_pins_no_more_than_twice_its_pool_by_default() -> None:
    assert agree_on_pools([OFFER], Config()) == Pools(20, 90, 100)
    assert agree_on_pools([GPU], Config()) == Pools(20, 40, 100)
    assert agree_on_pools([GPU], Config(kv_host_memory="9000")) == Pools(20, 90, 100)


def test_without_room_for_a_single_block_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no room for KV: one block takes 100 bytes; raise --kv-device-memory"):
        agree_on_pools([OFFER, replace(OFFER, device_bytes=99)], Config())
