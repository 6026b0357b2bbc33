"""The facts of a model in a GGUF file, from its metadata and the names of its tensors."""

from typing import Any, TypeVar

from gguf.constants import GGMLQuantizationType

from common.gguf_file import GgufFile
from common.model_files import ModelError
from common.model_spec import ModelSpec, RopeScaling, WeightType

T = TypeVar("T", int, float, str)

_ROPE_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's files say llama
_WEIGHT_TYPES: dict[GGMLQuantizationType, WeightType] = {
    GGMLQuantizationType.F32: "fp32",
    GGMLQuantizationType.F16: "fp16",
}
_EOS_KEYS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))  # of sequence, turn, message
_EMBEDDING = "token_embd.weight"


def gguf_spec(file: GgufFile) -> ModelSpec:
    """The facts of `file`. Raises ModelError naming what is missing or not supported."""
    fields = _Fields(file)
    if fields.architecture not in (*_ROPE_ARCHITECTURES, "gpt2"):
        known = ", ".join((*_ROPE_ARCHITECTURES, "gpt2"))
        raise ModelError(f"{file.path.name}: architecture {fields.architecture!r} is not one of {known}")
    if fields.get(int, "expert_count", 0):
        raise ModelError(f"{file.path.name}: mixture-of-experts models are not supported")
    if file.metadata.get("split.count", 1) > 1:
        raise ModelError(f"{file.path.name} is one part of a split model; merge the parts into one file")
    shared = _shared(fields)
    own = _gpt2(fields) if fields.architecture == "gpt2" else _rope_family(fields, shared["head_dim"])
    return ModelSpec(**shared, **own)


class _Fields:
    """Metadata of one architecture: `block_count` is `llama.block_count`."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture: str = file.metadata.get("general.architecture", "")

    def get(self, kind: type[T], key: str, default: T | None = None) -> T:
        """A single value. Raises ModelError if it is missing and has no default, or is not of `kind`."""
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if not isinstance(value, kind):  # a list means: a different value for every layer
            raise ModelError(f"{self.file.path.name}: {name} is {value!r}, not a single {kind.__name__}")
        return value

    def has_tensor(self, name: str) -> bool:
        return name in self.file.tensors


def _shared(fields: _Fields) -> dict[str, Any]:
    """The arguments of ModelSpec that all architectures share."""
    metadata = fields.file.metadata
    embedding = fields.file.tensors.get(_EMBEDDING)
    if embedding is None:
        raise ModelError(f"{fields.file.path.name} has no tensor {_EMBEDDING}")
    heads = fields.get(int, "attention.head_count")
    hidden = fields.get(int, "embedding_length")
    return {
        "architecture": fields.architecture,
        "num_layers": fields.get(int, "block_count"),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": fields.get(int, "attention.head_count_kv", heads),
        "head_dim": fields.get(int, "attention.key_length", hidden // max(heads, 1)),
        "ffn_size": fields.get(int, "feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "context_length": fields.get(int, "context_length"),
        "dtype": _WEIGHT_TYPES.get(embedding.packing, "bf16"),  # of quantized weights: the wider range is the safer one
        "tied_embeddings": not fields.has_tensor("output.weight"),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": tuple(dict.fromkeys(metadata[key] for key in _EOS_KEYS if key in metadata)),
        "qkv_bias": fields.has_tensor("blk.0.attn_q.bias") or fields.has_tensor("blk.0.attn_qkv.bias"),
        "out_bias": fields.has_tensor("blk.0.attn_output.bias"),
        "mlp_bias": fields.has_tensor("blk.0.ffn_up.bias"),
    }


def _gpt2(fields: _Fields) -> dict[str, Any]:
    return {
        "family": "gpt2",
        "activation": "gelu_tanh",
        "norm_eps": fields.get(float, "attention.layer_norm_epsilon", 1e-5),
    }


def _rope_family(fields: _Fields, head_dim: int) -> dict[str, Any]:
    rotated = fields.get(int, "rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelError(f"{fields.file.path.name} rotates {rotated} of {head_dim} dimensions: not supported")
    return {
        "family": "llama",
        "activation": "silu",
        "norm_eps": fields.get(float, "attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": fields.get(float, "rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields),
        "qk_norm": fields.has_tensor("blk.0.attn_q_norm.weight"),
        "sliding_window": fields.get(int, "attention.sliding_window", 0) or None,
    }


def _rope_scaling(fields: _Fields) -> RopeScaling | None:
    kind = fields.get(str, "rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(f"{fields.file.path.name}: rope scaling {kind} is not supported")
    if fields.has_tensor("rope_freqs.weight"):  # how Llama 3's scaling is written
        return RopeScaling("tensor")
    return RopeScaling("linear", fields.get(float, "rope.scaling.factor", 1.0)) if kind == "linear" else None
