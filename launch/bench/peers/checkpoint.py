"""The embedded model in the form that most servers read: a Hugging Face directory, in bf16."""

import json
from dataclasses import dataclass
from pathlib import Path

from common.gguf_file import GgufFile, read_gguf
from common.gguf_spec import gguf_spec
from common.model_files import locate
from common.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model, as it came and as others read it."""

    packed: Path  # GGUF, 4 bits per weight
    directory: Path  # Hugging Face, bf16


def export(directory: Path) -> Checkpoint:
    """Write the embedded model to `directory`, unless it is there. It names no end: answers have the length asked for.

    Raises ModelError where there is no embedded model.
    """
    packed = locate(None).path
    if not (directory / "config.json").exists():
        file = read_gguf(packed)
        spec = gguf_spec(file)
        directory.mkdir(parents=True, exist_ok=True)
        _write_weights(file, spec, directory)
        _write_tokenizer(file, directory)
        (directory / "config.json").write_text(json.dumps(_config(spec)))  # last: what lies here is complete
    return Checkpoint(packed, directory)


def _write_weights(file: GgufFile, spec: ModelSpec, directory: Path) -> None:
    import torch  # noqa: PLC0415 - seconds, for a command that rarely needs it
    from safetensors.torch import save_file  # noqa: PLC0415

    from worker.gguf_weights import GgufWeights  # noqa: PLC0415

    weights = GgufWeights(file, spec, torch.device("cpu"), torch.bfloat16)
    tensors = {name: weights.get(name, *shape) for name, shape in _shapes(spec).items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama with tied embeddings."""
    hidden, ffn = spec.hidden_size, spec.ffn_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    of_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    layers = {
        f"model.layers.{i}.{name}.weight": shape for i in range(spec.num_layers) for name, shape in of_layer.items()
    }
    return {"model.embed_tokens.weight": (spec.vocab_size, hidden), **layers, "model.norm.weight": (hidden,)}


def _config(spec: ModelSpec) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": None,
    }


def _write_tokenizer(file: GgufFile, directory: Path) -> None:
    from gateway.text.gguf_tokenizer import gguf_tokenizer  # noqa: PLC0415

    (directory / "tokenizer.json").write_text(gguf_tokenizer(file.metadata).to_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": file.metadata["tokenizer.chat_template"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
