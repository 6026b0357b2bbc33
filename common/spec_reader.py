"""What a model is, read from its files: a Hugging Face directory or a GGUF file."""

from common.gguf_file import read_gguf
from common.gguf_spec import gguf_spec
from common.hf_spec import hf_spec
from common.model_files import ModelError, ModelFiles
from common.model_spec import ModelSpec

_COUNTS = [
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "ffn_size",
    "vocab_size",
    "context_length",
]


def read_spec(files: ModelFiles) -> ModelSpec:
    """The facts of a model. Raises ModelError naming what is missing, contradictory or not supported."""
    spec = gguf_spec(read_gguf(files.path)) if files.format == "gguf" else hf_spec(files.path)
    _check(spec)
    return spec


def _check(spec: ModelSpec) -> None:
    """Refuse numbers that do not fit together: they would fail later, and with a message about a tensor."""
    for name in _COUNTS:
        if getattr(spec, name) < 1:
            raise ModelError(f"the model has {getattr(spec, name)} for its {name.replace('_', ' ')}")
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{spec.num_heads} query heads cannot share {spec.num_kv_heads} key/value heads evenly")
    if spec.family == "llama" and spec.head_dim % 2:
        raise ModelError(f"a head of {spec.head_dim} dimensions cannot be rotated: the number is odd")
    if spec.family != "llama" and spec.head_dim * spec.num_heads != spec.hidden_size:
        raise ModelError(f"a hidden size of {spec.hidden_size} cannot be split into {spec.num_heads} heads")
    if spec.sliding_layers is not None and len(spec.sliding_layers) != spec.num_layers:
        raise ModelError(f"layer_types lists {len(spec.sliding_layers)} layers, the model has {spec.num_layers}")
