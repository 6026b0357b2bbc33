import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from common.model_files import ModelError, ModelFiles, locate
from common.model_spec import ModelSpec, RopeScaling
from common.spec_reader import read_spec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 100,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def spec_of(directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelSpec:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_spec(ModelFiles("safetensors", directory, "tiny"))


# ---------------------------------------------------------------------------- Hugging Face directories

CONFIGS = [
    LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16"
    ),
    LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=32, attention_bias=True, mlp_bias=True),
    MistralConfig(hidden_size=64, num_attention_heads=8),
    MistralConfig(hidden_size=64, num_attention_heads=8, sliding_window=None, rms_norm_eps=1e-5, dtype="float16"),
    Qwen2Config(hidden_size=64, num_attention_heads=32, eos_token_id=[7, 8]),
    Qwen2Config(hidden_size=64, num_attention_heads=32, use_sliding_window=True, num_hidden_layers=32),
    Qwen3Config(hidden_size=64, num_attention_heads=32),
    Qwen3Config(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=24, attention_bias=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_llama_like_config_is_read_as_transformers_reads_it(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    spec = read_spec(ModelFiles("safetensors", tmp_path, "tiny"))
    assert spec.family == "llama"
    assert spec.num_layers == config.num_hidden_layers
    assert spec.hidden_size == config.hidden_size
    assert (spec.num_heads, spec.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert spec.head_dim == getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert spec.ffn_size == config.intermediate_size
    assert (spec.vocab_size, spec.context_length) == (config.vocab_size, config.max_position_embeddings)
    assert spec.norm_eps == config.rms_norm_eps
    assert spec.rope_theta == config.rope_parameters["rope_theta"]
    assert spec.tied_embeddings == config.tie_word_embeddings
    assert spec.eos_token_ids == tuple(eos(config))
    assert spec.bos_token_id == config.bos_token_id
    windows = [spec.window(layer) for layer in range(spec.num_layers)]
    assert windows == [window(config, layer) for layer in range(spec.num_layers)]
    assert spec.qkv_bias == (config.model_type == "qwen2" or getattr(config, "attention_bias", False))
    assert spec.out_bias == getattr(config, "attention_bias", False)
    assert spec.mlp_bias == getattr(config, "mlp_bias", False)
    assert spec.qk_norm == (config.model_type == "qwen3")


def eos(config: PreTrainedConfig) -> list[int]:
    ids = config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def window(config: PreTrainedConfig, layer: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[layer] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None


def test_an_opt_config_is_read_with_what_its_350m_member_changes(tmp_path: Path) -> None:
    OPTConfig(
        hidden_size=64, num_attention_heads=4, word_embed_proj_dim=32, do_layer_norm_before=False
    ).save_pretrained(tmp_path)
    spec = read_spec(ModelFiles("safetensors", tmp_path, "tiny"))
    assert (spec.family, spec.embedding_size, spec.norm_first, spec.tied_embeddings) == ("opt", 32, False, True)
    assert (spec.num_kv_heads, spec.head_dim, spec.ffn_size, spec.activation) == (4, 16, 3072, "relu")
    assert spec_of(tmp_path, OPT | {"word_embed_proj_dim": 32}).embedding_size is None


def test_a_gpt2_config_is_read_with_its_own_names(tmp_path: Path) -> None:
    GPT2Config(n_embd=64, n_head=4, n_layer=3).save_pretrained(tmp_path)
    spec = read_spec(ModelFiles("safetensors", tmp_path, "tiny"))
    assert (spec.family, spec.hidden_size, spec.num_layers, spec.num_kv_heads, spec.head_dim) == ("gpt2", 64, 3, 4, 16)
    assert (spec.ffn_size, spec.context_length, spec.activation, spec.eos_token_ids) == (
        256,
        1024,
        "gelu_tanh",
        (50256,),
    )


def test_old_and_new_spellings_mean_the_same(tmp_path: Path) -> None:
    old = {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING, "torch_dtype": "bfloat16"}
    new = {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 5e5}, "dtype": "bfloat16"}
    assert spec_of(tmp_path, LLAMA | old) == spec_of(tmp_path, LLAMA | new)
    assert spec_of(tmp_path, LLAMA | old).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 16)


def test_linear_scaling_may_be_spelled_with_type(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert spec.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(("given", "expected"), [(9, (9,)), ([9, 11], (9, 11)), (None, (2,))])
def test_end_tokens_come_from_the_generation_config_first(
    given: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    assert spec_of(tmp_path, LLAMA, {"eos_token_id": given}).eos_token_ids == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"model_type": "mixtral"}, "'mixtral' is not one of llama, mistral, qwen2, qwen3, opt, gpt2"),
        (LLAMA | {"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, "auto_map, is never run"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantized by awq"),
        (LLAMA | {"num_local_experts": 8}, "mixture-of-experts"),
        (LLAMA | {"hidden_act": "tanh"}, "hidden_act 'tanh' is not one of silu"),
        (LLAMA | {"torch_dtype": "float64"}, "dtype 'float64'"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type yarn"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type dynamic"),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "positive low_freq_factor"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "positive factor"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA | {"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        (LLAMA | {"head_dim": 7}, "odd"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers"),
        (LLAMA | {"hidden_size": "large"}, "hidden_size"),
        ({key: LLAMA[key] for key in LLAMA if key != "intermediate_size"}, "intermediate_size"),
        (LLAMA | {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
        (
            LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "lists 1 layers, the model has 2",
        ),
        (OPT | {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (OPT | {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (OPT | {"num_attention_heads": 5}, "cannot be split into 5 heads"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ([], "array"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        spec_of(tmp_path, config)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_spec(ModelFiles("safetensors", tmp_path, "tiny"))


# ---------------------------------------------------------------------------- GGUF files


def gguf(path: Path, architecture: str, fields: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> ModelFiles:
    """A GGUF file; fields are those of the architecture, or whole names with a dot in front."""
    writer = GGUFWriter(path / "tiny.gguf", architecture)
    for key, value in fields.items():
        name = key[1:] if key.startswith(".") else f"{architecture}.{key}"
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](name, value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(str(path / "tiny.gguf"))


GGUF = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
}
RMS = {"attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5e5}
EMBEDDING = {"token_embd.weight": (100, 32)}


def test_a_llama_gguf_is_read_from_metadata_and_tensor_names(tmp_path: Path) -> None:
    ends = {"eos": 7, "eot": 9, "eom": 11}
    fields = GGUF | RMS | {f".tokenizer.ggml.{end}_token_id": token for end, token in ends.items()}
    spec = read_spec(gguf(tmp_path, "llama", fields, EMBEDDING))
    assert dataclasses.replace(spec, norm_eps=1e-5) == ModelSpec(
        family="llama",
        architecture="llama",
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=48,
        vocab_size=100,
        context_length=64,
        dtype="fp16",
        activation="silu",
        norm_eps=1e-5,
        tied_embeddings=True,
        eos_token_ids=(7, 9, 11),
        bos_token_id=None,
        rope_theta=5e5,
    )
    assert spec.norm_eps == pytest.approx(1e-5)


def test_biases_norms_and_the_head_of_a_gguf_are_seen_by_their_tensors(tmp_path: Path) -> None:
    tensors = EMBEDDING | {"output.weight": (100, 32), "blk.0.attn_q.bias": (32,), "blk.0.attn_q_norm.weight": (16,)}
    spec = read_spec(gguf(tmp_path, "qwen3", GGUF | RMS | {"attention.key_length": 16}, tensors))
    assert (spec.tied_embeddings, spec.qkv_bias, spec.qk_norm, spec.head_dim) == (False, True, True, 16)


def test_a_gpt2_gguf_has_learned_positions_and_biases(tmp_path: Path) -> None:
    tensors = EMBEDDING | {f"blk.0.{name}.bias": (32,) for name in ("attn_qkv", "attn_output", "ffn_up")}
    spec = read_spec(gguf(tmp_path, "gpt2", GGUF | {"attention.layer_norm_epsilon": 1e-5}, tensors))
    assert (spec.family, spec.activation, spec.num_kv_heads) == ("gpt2", "gelu_tanh", 4)
    assert (spec.qkv_bias, spec.out_bias, spec.mlp_bias) == (True, True, True)


def test_rope_scaling_of_a_gguf_is_linear_or_a_tensor(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert read_spec(gguf(tmp_path, "llama", GGUF | linear, EMBEDDING)).rope_scaling == RopeScaling("linear", 4.0)
    llama3 = EMBEDDING | {"rope_freqs.weight": (4,)}
    assert read_spec(gguf(tmp_path, "llama", GGUF, llama3)).rope_scaling == RopeScaling("tensor")


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("gemma3", GGUF, "architecture 'gemma3' is not one of llama, qwen2, qwen3, gpt2"),
        ("llama", GGUF | {"expert_count": 8}, "mixture-of-experts"),
        ("llama", GGUF | {"rope.scaling.type": "yarn"}, "rope scaling yarn"),
        ("llama", GGUF | {"rope.dimension_count": 4}, "rotates 4 of 8"),
        ("llama", GGUF | {"attention.head_count_kv": [2, 1]}, r"head_count_kv is \[2, 1\]"),
        ("llama", {key: GGUF[key] for key in GGUF if key != "block_count"}, "llama.block_count is None"),
        ("llama", GGUF | {"attention.head_count": 0}, "0 for its num heads"),
        ("llama", GGUF | {".split.count": 3}, "one part of a split model"),
    ],
)
def test_a_gguf_that_cannot_be_served_is_refused_by_name(
    architecture: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    files = gguf(tmp_path, architecture, fields, EMBEDDING)
    with pytest.raises(ModelError, match=message):
        read_spec(files)


def test_a_gguf_without_an_embedding_is_refused(tmp_path: Path) -> None:
    files = gguf(tmp_path, "llama", GGUF, {"output_norm.weight": (32,)})
    with pytest.raises(ModelError, match=r"no tensor token_embd\.weight"):
        read_spec(files)


@pytest.mark.model
def test_the_embedded_model_is_smollm2() -> None:
    spec = read_spec(locate(None))
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads) == (30, 576, 9, 3)
    assert (spec.vocab_size, spec.context_length, spec.eos_token_ids, spec.tied_embeddings) == (49152, 8192, (2,), True)
