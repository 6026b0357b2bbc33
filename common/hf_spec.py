"""The facts of a Hugging Face checkpoint, from its config.json. Reads JSON only: no code of the checkpoint is run,
and transformers, which would bring torch into the gateway, is not imported.

Every model type is a record of the keys that matter to it, with the defaults that transformers gives them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from common.model_files import ModelError
from common.model_spec import Activation, ModelSpec, RopeScaling, WeightType

Count = Annotated[int, msgspec.Meta(gt=0)]
TokenIds = int | list[int] | None
T = TypeVar("T")

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_WEIGHT_TYPES: dict[str, WeightType] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def hf_spec(directory: Path) -> ModelSpec:
    """Read config.json and generation_config.json. Raises ModelError naming what is missing or not supported."""
    path = directory / "config.json"
    model_type = _decode(path, _AnyConfig).checked_type()
    config = _decode(path, _CONFIGS[model_type])
    generation = directory / "generation_config.json"
    if generation.is_file():
        config.eos_token_id = _decode(generation, _GenerationConfig).eos_token_id or config.eos_token_id
    return config.spec(model_type)


def _decode(path: Path, record: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=record)
    except msgspec.DecodeError as error:  # the message names the key
        raise ModelError(f"{path}: {error}") from None


class _AnyConfig(msgspec.Struct):
    """What decides, before anything else, whether a checkpoint can be served."""

    model_type: str
    auto_map: Any = None
    quantization_config: dict[str, Any] | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None

    def checked_type(self) -> str:
        if self.model_type not in _CONFIGS:
            code = " (its own code, named by auto_map, is never run)" if self.auto_map else ""
            raise ModelError(f"model type {self.model_type!r} is not one of {', '.join(_CONFIGS)}{code}")
        if self.quantization_config is not None:
            method = self.quantization_config.get("quant_method", "unnamed")
            raise ModelError(
                f"weights quantized by {method} are not supported; use the original weights or a GGUF file"
            )
        if self.num_experts or self.num_local_experts:
            raise ModelError("mixture-of-experts models are not supported")
        return self.model_type


class _GenerationConfig(msgspec.Struct):
    eos_token_id: TokenIds = None


class _Rope(msgspec.Struct, kw_only=True):
    """`rope_parameters`, or `rope_scaling` as it was called before."""

    rope_type: str | None = None
    type: str | None = None  # older than rope_type
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: Count | None = None

    def scaling(self) -> RopeScaling | None:
        kind = self.rope_type or self.type or "default"
        _supported(self.partial_rotary_factor == 1, f"partial_rotary_factor {self.partial_rotary_factor}")
        if kind == "default":
            return None
        if kind == "linear":
            return RopeScaling("linear", self._number("factor"))
        _supported(kind == "llama3", f"rope type {kind}")
        return RopeScaling(
            "llama3",
            factor=self._number("factor"),
            low_freq_factor=self._number("low_freq_factor"),
            high_freq_factor=self._number("high_freq_factor"),
            original_context=int(self._number("original_max_position_embeddings")),
        )

    def _number(self, key: str) -> float:
        value: float | None = getattr(self, key)
        if value is None or value <= 0:
            raise ModelError(f"config.json: rope scaling needs a positive {key}, it is {value}")
        return value


class _Config(msgspec.Struct, kw_only=True):
    """The keys that all model types share."""

    architectures: list[str] = []
    vocab_size: Count
    torch_dtype: str | None = None
    dtype: str | None = None  # what torch_dtype is called since transformers 5
    bos_token_id: int | None = None
    eos_token_id: TokenIds = None
    tie_word_embeddings: bool = False

    def spec(self, model_type: str) -> ModelSpec:
        raise NotImplementedError

    def shared(self, model_type: str) -> dict[str, Any]:
        """The arguments of ModelSpec that all model types share."""
        eos = self.eos_token_id
        return {
            "architecture": self.architectures[0] if self.architectures else model_type,
            "vocab_size": self.vocab_size,
            "dtype": _named("dtype", self.dtype or self.torch_dtype or "float32", _WEIGHT_TYPES),
            "tied_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_ids": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        }


class _Llama(_Config, kw_only=True):
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None  # what rope_theta and rope_scaling are since transformers 5
    partial_rotary_factor: float = 1.0
    bos_token_id: int | None = 1
    eos_token_id: TokenIds = 2

    def spec(self, model_type: str) -> ModelSpec:
        rope = self.rope_parameters or self.rope_scaling or _Rope()
        _supported(self.partial_rotary_factor == 1, f"partial_rotary_factor {self.partial_rotary_factor}")
        return ModelSpec(
            family="llama",
            **self.shared(model_type),
            num_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            ffn_size=self.intermediate_size,
            context_length=self.max_position_embeddings,
            activation=_named("hidden_act", self.hidden_act, _ACTIVATIONS),
            norm_eps=self.rms_norm_eps,
            rope_theta=rope.rope_theta or self.rope_theta or 10000.0,
            rope_scaling=rope.scaling(),
            mlp_bias=self.mlp_bias,
            **self.attention(),
        )

    def attention(self) -> dict[str, Any]:
        """The arguments of ModelSpec in which the attention of the family's members differs."""
        return {"qkv_bias": self.attention_bias, "out_bias": self.attention_bias}


class _Mistral(_Llama, kw_only=True):
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Count = 131072
    sliding_window: Count | None = 4096

    def attention(self) -> dict[str, Any]:
        return {"sliding_window": self.sliding_window}


class _Qwen2(_Llama, kw_only=True):
    num_key_value_heads: Count | None = 32
    max_position_embeddings: Count = 32768
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    bos_token_id: int | None = None
    eos_token_id: TokenIds = None

    def attention(self) -> dict[str, Any]:
        return {"qkv_bias": True, **self._window()}

    def _window(self) -> dict[str, Any]:
        if not self.use_sliding_window or self.sliding_window is None:
            return {}
        slides = [layer >= self.max_window_layers for layer in range(self.num_hidden_layers)]
        if self.layer_types is not None:
            slides = [kind == "sliding_attention" for kind in self.layer_types]
        return {"sliding_window": self.sliding_window, "sliding_layers": tuple(slides)}


class _Qwen3(_Qwen2, kw_only=True):
    head_dim: Count | None = 128

    def attention(self) -> dict[str, Any]:
        return {"qkv_bias": self.attention_bias, "out_bias": self.attention_bias, "qk_norm": True, **self._window()}


class _Opt(_Config, kw_only=True):
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    ffn_dim: Count
    max_position_embeddings: Count = 2048
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    word_embed_proj_dim: Count | None = None
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    remove_final_layer_norm: bool = msgspec.field(default=False, name="_remove_final_layer_norm")
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: TokenIds = 2

    def spec(self, model_type: str) -> ModelSpec:
        _supported(self.layer_norm_elementwise_affine, "layer_norm_elementwise_affine false")
        _supported(not self.remove_final_layer_norm, "_remove_final_layer_norm true")
        return ModelSpec(
            family="opt",
            **self.shared(model_type),
            num_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            ffn_size=self.ffn_dim,
            context_length=self.max_position_embeddings,
            activation=_named("activation_function", self.activation_function, _ACTIVATIONS),
            norm_eps=1e-5,
            qkv_bias=self.enable_bias,
            out_bias=self.enable_bias,
            mlp_bias=self.enable_bias,
            norm_first=self.do_layer_norm_before,
            embedding_size=None if self.word_embed_proj_dim == self.hidden_size else self.word_embed_proj_dim,
        )


class _Gpt2(_Config, kw_only=True):
    n_embd: Count
    n_layer: Count
    n_head: Count
    n_inner: Count | None = None
    n_positions: Count = 1024
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: TokenIds = 50256

    def spec(self, model_type: str) -> ModelSpec:
        _supported(self.scale_attn_weights, "scale_attn_weights false")
        _supported(not self.scale_attn_by_inverse_layer_idx, "scale_attn_by_inverse_layer_idx true")
        _supported(not self.add_cross_attention, "add_cross_attention true")
        return ModelSpec(
            family="gpt2",
            **self.shared(model_type),
            num_layers=self.n_layer,
            hidden_size=self.n_embd,
            num_heads=self.n_head,
            num_kv_heads=self.n_head,
            head_dim=self.n_embd // self.n_head,
            ffn_size=self.n_inner or 4 * self.n_embd,
            context_length=self.n_positions,
            activation=_named("activation_function", self.activation_function, _ACTIVATIONS),
            norm_eps=self.layer_norm_epsilon,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )


_CONFIGS: dict[str, type[_Config]] = {
    "llama": _Llama,
    "mistral": _Mistral,
    "qwen2": _Qwen2,
    "qwen3": _Qwen3,
    "opt": _Opt,
    "gpt2": _Gpt2,
}


def _supported(holds: bool, what: str) -> None:
    if not holds:
        raise ModelError(f"config.json: {what} is not supported")


def _named(key: str, value: str, known: dict[str, T]) -> T:
    if value not in known:
        raise ModelError(f"config.json: {key} {value!r} is not one of {', '.join(known)}")
    return known[value]
