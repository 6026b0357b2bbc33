"""Our stages against transformers' models: tiny ones, random weights, every variant of every family."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_attention import DenseAttention
from gguf_of import write_gguf
from reference import logits, random_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from common.model_files import ModelError, ModelFiles, locate
from common.spec_reader import read_spec
from common.topology import Stage, partition
from worker.models.load import load_stage
from worker.models.stage_model import StageModel
from worker.models.stored_matrix import StoredMatrix

IDS = [3, 17, 42, 5, 88, 23, 61, 7, 90, 11, 54, 32, 2, 77, 19, 64, 8, 29, 70, 41]
SIZE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = SIZE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
OPT = SIZE | {"ffn_dim": 48, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "n_inner": 48}

CASES: dict[str, PreTrainedConfig] = {
    "llama-untied": LlamaConfig(**LLAMA),
    "llama-tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "llama-head-dim": LlamaConfig(**LLAMA, head_dim=16),
    "llama-llama3-rope": LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": LlamaConfig(**LLAMA, rope_parameters=LINEAR_ROPE),
    "mistral": MistralConfig(**LLAMA, sliding_window=6),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen2-sliding": Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen3": Qwen3Config(**LLAMA, head_dim=16),
    "opt": OPTConfig(**OPT),
    "opt-350m": OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=24),
    "opt-no-bias": OPTConfig(**OPT, enable_bias=False, activation_function="gelu"),
    "gpt2": GPT2Config(**GPT2),
}


Case = Callable[[str], tuple[PreTrainedModel, ModelFiles]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Gives the reference model of a case, and its files."""

    @cache
    def make(name: str) -> tuple[PreTrainedModel, ModelFiles]:
        directory = tmp_path_factory.mktemp(name)
        return random_model(CASES[name], directory), locate(str(directory))

    return make


def load(files: ModelFiles, stage: Stage, dtype: torch.dtype = torch.float32, **options: Any) -> StageModel:
    options.setdefault("progress", lambda done, total: None)
    return load_stage(files, read_spec(files), stage, device=torch.device("cpu"), dtype=dtype, **options)


@torch.inference_mode()
def run(
    files: ModelFiles, num_stages: int, chunks: list[list[int]], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits of all chunks' tokens, computed chunk by chunk through a chain of stages: [tokens, vocab]."""
    stages = [load(files, stage, dtype) for stage in partition(read_spec(files), num_stages)]
    attentions = [DenseAttention() for _ in stages]
    rows, start = [], 0
    for chunk in chunks:
        x, positions = torch.tensor(chunk), torch.arange(start, start + len(chunk))
        for stage, attention in zip(stages, attentions, strict=True):
            x = stage.forward(x, positions, attention)
        rows.append(stages[-1].logits(x))
        start += len(chunk)
    return torch.cat(rows)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_of_stages_computes_what_transformers_does(case: Case, name: str, num_stages: int) -> None:
    model, files = case(name)
    expected = logits(model, IDS)
    assert expected.std() > 0.3, "too uniform to tell models apart"
    torch.testing.assert_close(run(files, num_stages, [IDS]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama-llama3-rope", "mistral", "qwen3", "opt", "gpt2"])
def test_token_by_token_equals_all_at_once(case: Case, name: str) -> None:
    _, files = case(name)
    stepwise = run(files, 2, [IDS[:5], *([token] for token in IDS[5:])])
    torch.testing.assert_close(stepwise, run(files, 2, [IDS]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", ["llama-tied", "llama-untied", "llama-biases", "llama-llama3-rope", "qwen2", "qwen3", "gpt2"]
)
def test_a_gguf_file_of_a_model_computes_the_same(case: Case, name: str, tmp_path: Path) -> None:
    model, files = case(name)
    packed = locate(str(write_gguf(model, tmp_path / "model.gguf")))
    torch.testing.assert_close(run(packed, 2, [IDS]), run(files, 2, [IDS]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama-tied", "opt", "gpt2"])
def test_half_precision_gives_fp32_logits_close_to_the_full_ones(case: Case, name: str) -> None:
    _, files = case(name)
    half, full = run(files, 2, [IDS], torch.bfloat16), run(files, 2, [IDS])
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half, full, dim=-1).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "opt-350m", "gpt2"])
def test_a_checkpoint_of_16_bits_is_computed_exactly_as_its_numbers_in_fp32(
    case: Case, name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = case(name)
    copy.deepcopy(model).to(dtype).save_pretrained(tmp_path)
    files = locate(str(tmp_path))
    found = run(files, 2, [IDS, [1, 2]])
    monkeypatch.setattr(StoredMatrix, "narrowed", lambda self, dtypes=(): self)
    assert torch.equal(found, run(files, 2, [IDS, [1, 2]]))


def test_an_embedding_of_its_own_is_kept_in_16_bits_that_have_its_numbers(case: Case, tmp_path: Path) -> None:
    model, _ = case("llama-untied")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    stage = load(locate(str(tmp_path)), Stage(0, 1, range(4)))
    assert stage.embedding.tokens.__self__.values.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("llama-untied", ("model.layers.1.", "model.layers.2.")),
        ("opt", ("model.decoder.layers.1.", "model.decoder.layers.2.")),
        ("gpt2", ("transformer.h.1.", "transformer.h.2.")),
    ],
)
def test_a_middle_stage_reads_its_layers_and_nothing_else(
    case: Case, name: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    _, files = case(name)
    keep(files, tmp_path, own)
    stage = Stage(1, 3, range(1, 3))
    hidden = torch.randn(5, 32)
    whole, alone = load(files, stage), load(locate(str(tmp_path)), stage)
    expected = whole.forward(hidden, torch.arange(5), DenseAttention())
    assert torch.equal(alone.forward(hidden, torch.arange(5), DenseAttention()), expected)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("llama-tied", ("model.embed_tokens.", "model.norm.", "model.layers.3.")),
        ("llama-untied", ("lm_head.", "model.norm.", "model.layers.3.")),
    ],
)
def test_the_last_stage_reads_the_embedding_only_if_it_is_the_head(
    case: Case, name: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    _, files = case(name)
    keep(files, tmp_path, own)
    stage = load(locate(str(tmp_path)), Stage(1, 2, range(3, 4)))
    assert stage.logits(torch.randn(2, 32)).shape == (2, 96)


def test_a_stage_without_its_layer_is_refused_by_the_name_of_the_tensor(case: Case, tmp_path: Path) -> None:
    _, files = case("llama-tied")
    keep(files, tmp_path, ("model.layers.1.",))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.input_layernorm\.weight"):
        load(locate(str(tmp_path)), Stage(1, 3, range(2)))


def test_shards_give_the_same_model_as_one_file(case: Case, tmp_path: Path) -> None:
    model, files = case("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert torch.equal(run(locate(str(tmp_path)), 2, [IDS]), run(files, 2, [IDS]))


def test_layers_are_numbered_within_their_stage_and_windows_within_the_model(case: Case) -> None:
    _, files = case("qwen2-sliding")
    seen = []

    def attention(layer: int, q: torch.Tensor, k: Any, v: Any, *, scale: float, window: int | None) -> torch.Tensor:
        seen.append((layer, window))
        return q.flatten(1)

    load(files, Stage(1, 3, range(1, 3))).forward(torch.randn(1, 32), torch.tensor([0]), attention)
    assert seen == [(0, None), (1, 6)]


def test_loading_reports_every_layer(case: Case) -> None:
    _, files = case("gpt2")
    seen = []
    load(files, Stage(1, 2, range(1, 4)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def keep(files: ModelFiles, directory: Path, prefixes: tuple[str, ...]) -> None:
    """Copy a model without the tensors that do not begin with one of `prefixes`."""
    tensors = load_file(files.path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
    assert kept
    save_file(kept, directory / "model.safetensors")
    (directory / "config.json").write_bytes((files.path / "config.json").read_bytes())
