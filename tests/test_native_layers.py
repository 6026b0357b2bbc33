"""All layers in one call against one call after the other: the same bits."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import random_model
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from common.config import Stored
from common.model_files import locate
from common.model_spec import ModelSpec
from common.records import Entry, pack_blocks
from common.spec_reader import read_spec
from common.topology import partition
from worker.attention.native import attends_in_tiles, open_kernel
from worker.inputs import build_inputs
from worker.kv_cache import KvCache
from worker.models.llama import LlamaStage
from worker.models.load import load_stage

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

CPU = torch.device("cpu")
SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = SIZES | {"intermediate_size": 176, "num_key_value_heads": 2, "max_position_embeddings": 256}
CASES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**LLAMA, head_dim=16),
    "biases": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "windows": MistralConfig(**LLAMA, sliding_window=6),
    "a window in some layers": Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "norms of heads": Qwen3Config(**LLAMA, head_dim=16),
    "heads for tiles": LlamaConfig(**LLAMA, head_dim=32),
}
LENGTHS = [(0, 40), (37, 1), (5, 3), (90, 1)]  # tokens in the cache, tokens computed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def stage_of(name: str, folder: Path, stored: Stored) -> tuple[ModelSpec, LlamaStage]:
    home = folder / name
    if not home.is_dir():
        random_model(CASES[name], home)
    files = locate(str(home))
    spec = read_spec(files)
    (whole,) = partition(spec, 1)
    stage = load_stage(
        files, spec, whole, device=CPU, dtype=torch.float32, stored=stored, progress=lambda done, total: None
    )
    assert isinstance(stage, LlamaStage)
    return spec, stage


@torch.inference_mode()
def hidden_of(
    spec: ModelSpec, stage: LlamaStage, lengths: list[tuple[int, int]], kv_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Of one iteration over a cache of random numbers."""
    cache = KvCache(
        spec, num_layers=3, block_tokens=16, num_device_blocks=32, num_host_blocks=0, device=CPU, dtype=kv_dtype
    )
    cache.device.copy_(torch.randn(cache.device.shape, generator=torch.Generator().manual_seed(1)))
    blocks = iter(range(32))
    entries = []
    for job, (start, count) in enumerate(lengths):
        own = [next(blocks) for _ in range(-(-(start + count) // 16))]
        entries.append(Entry(job, start, [(7 * start + i) % 96 for i in range(count)], pack_blocks(own), None))
    inputs = build_inputs(entries, 16, CPU)
    kernel = open_kernel(cache)
    assert kernel is not None
    return stage.forward(inputs.tokens, inputs.positions, kernel.attention(inputs))


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stored", ["exact", "bf16", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_they_compute_what_single_calls_do(name: str, stored: Stored, kv_dtype: torch.dtype, folder: Path) -> None:
    spec, stage = stage_of(name, folder, stored)
    assert stage.native is not None
    one_by_one = hidden_of(spec, replace(stage, native=None), LENGTHS, kv_dtype)
    together = hidden_of(spec, stage, LENGTHS, kv_dtype)
    if name == "norms of heads":  # which torch sums in another order; rounding makes more of that
        exact = (stored, kv_dtype) == ("exact", torch.float32)
        torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4 if exact else 5e-2)
    else:
        assert torch.equal(together, one_by_one)


@pytest.mark.skipif(not attends_in_tiles(32, 16), reason="no AMX")
@pytest.mark.parametrize("stored", ["bf16", "int8"])
def test_they_attend_in_tiles_as_single_calls_do(stored: Stored, folder: Path) -> None:
    spec, stage = stage_of("heads for tiles", folder, stored)
    one_by_one = hidden_of(spec, replace(stage, native=None), LENGTHS, torch.bfloat16)
    assert torch.equal(hidden_of(spec, stage, LENGTHS, torch.bfloat16), one_by_one)


@pytest.mark.parametrize("name", CASES)
def test_a_job_has_the_same_bits_after_larger_and_smaller_batches(name: str, folder: Path) -> None:
    spec, stage = stage_of(name, folder, "int8")
    alone = hidden_of(spec, stage, LENGTHS[:1])
    assert torch.equal(hidden_of(spec, stage, LENGTHS)[: len(alone)], alone)
    assert torch.equal(hidden_of(spec, stage, LENGTHS[:1]), alone)


def test_a_family_whose_products_the_kernels_lack_goes_without(folder: Path) -> None:
    random_model(LlamaConfig(**LLAMA, hidden_act="gelu"), folder / "gelu")
    files = locate(str(folder / "gelu"))
    spec = read_spec(files)
    (whole,) = partition(spec, 1)
    stage = load_stage(files, spec, whole, device=CPU, dtype=torch.float32, progress=lambda done, total: None)
    assert isinstance(stage, LlamaStage)
    assert stage.native is None
