from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from common.config import Config, ConfigError, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1000000", 1_000_000),
        ("0", 0),
        ("512MiB", 512 * 2**20),
        ("512mib", 512 * 2**20),
        ("2G", 2 * 2**30),
        ("2GB", 2 * 2**30),
        ("1.5K", 1536),
        ("1T", 2**40),
        (" 4 GiB ", 4 * 2**30),
    ],
)
def test_sizes_have_units_of_1024(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "G", "many", "2X", "2GG", "1e", "-1G", "nan", "infG"])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a size: .*; write for example 512MiB or 2GiB"):
        parse_bytes(text)


def test_the_defaults_are_a_configuration() -> None:
    assert Config().model is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pipeline_parallel": 0}, "--pipeline-parallel must be at least 1"),
        ({"block_tokens": 0}, "--block-tokens must be at least 1"),
        ({"max_batch_jobs": -1}, "--max-batch-jobs must be at least 1"),
        ({"max_batch_tokens": 0}, "--max-batch-tokens must be at least 1"),
        ({"num_levels": 0}, "--num-levels must be at least 1"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"max_context": -5}, "--max-context must be at least 1"),
        ({"kv_device_blocks": 0}, "--kv-device-blocks must be at least 1"),
        ({"kv_host_blocks": -1}, "--kv-host-blocks must not be negative"),
        ({"prefill_chunk_tokens": -1}, "--prefill-chunk-tokens must not be negative"),
        ({"quantum_ms": 0.0}, "--quantum-ms must be greater than 0"),
        ({"quantum_growth": 1.0}, "--quantum-growth must be greater than 1"),
        ({"quantum_growth": float("nan")}, "--quantum-growth must be greater than 1"),
        ({"num_levels": 2000}, "--num-levels 2000 are too many with --quantum-growth 2.0"),
        ({"aging": -1.0}, "--aging must not be negative"),
        ({"aging_limit_ms": 0.0}, "--aging-limit-ms must be greater than 0"),
        ({"ping_interval": -1.0}, "--ping-interval must be greater than 0"),
        ({"start_timeout": 0.0}, "--start-timeout must be greater than 0"),
        ({"iteration_timeout": 0.0}, "--iteration-timeout must be greater than 0"),
        ({"drain_timeout": -1.0}, "--drain-timeout must not be negative"),
        ({"max_waiting_jobs": 0}, "--max-waiting-jobs must be at least 1"),
        ({"max_body_bytes": 0}, "--max-body-bytes must be at least 1"),
        ({"port": 80_000}, "--port must be from 0 to 65535"),
        ({"port": -1}, "--port must be from 0 to 65535"),
        ({"kv_device_memory": "lots"}, "not a size: 'lots'"),
        ({"kv_host_memory": "4 GiBit"}, "not a size: '4 GiBit'"),
    ],
)
def test_what_cannot_work_is_refused_by_the_name_of_its_option(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**option)


def test_a_configuration_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().port = 80  # type: ignore[misc]


def test_every_option_has_a_default() -> None:
    assert {field.name: getattr(Config(), field.name) for field in fields(Config)} == {
        field.name: field.default for field in fields(Config)
    }
