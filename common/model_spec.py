"""What a model is: the facts of its architecture, as both sides need them."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "opt", "gpt2"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
WeightType = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary frequency scaling; more kinds are refused when read.

    `linear` uses `factor`, `llama3` all four numbers, `tensor` none: the checkpoint has a divisor for each frequency.
    """

    kind: Literal["linear", "llama3", "tensor"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Architecture facts. `family` picks the definition, the rest switches it."""

    family: Family
    architecture: str  # the checkpoint's own word, for people
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int  # tokens the model was made for
    dtype: WeightType  # of the checkpoint
    activation: Activation
    norm_eps: float
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    # llama family
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None  # positions a token sees, itself included; None: all
    sliding_layers: tuple[bool, ...] | None = None  # per layer; None: all layers alike
    # opt
    norm_first: bool = True
    embedding_size: int | None = None  # where it differs from hidden_size (OPT-350M)

    def window(self, layer: int) -> int | None:
        """Positions that a token sees in `layer`, itself included; None: all."""
        slides = self.sliding_layers is None or self.sliding_layers[layer]
        return self.sliding_window if slides else None

    def layer_parameters(self) -> int:
        """Weights of one layer, about: what the partition into stages balances."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = self.hidden_size * self.ffn_size * (3 if self.family == "llama" else 2)
        return attention + mlp

    def kv_bytes_per_token(self, layers: int, itemsize: int) -> int:
        """Bytes of keys and values that one token needs in `layers` layers."""
        return 2 * layers * self.num_kv_heads * self.head_dim * itemsize
