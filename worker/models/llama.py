"""The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2 and Qwen3."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model_spec import ModelSpec
from common.topology import Stage
from worker.attention.native import NativeAttention
from worker.models.layers import (
    Embedding,
    Head,
    Progress,
    load_ends,
    reported,
)
from worker.models.load_linear import load_gated, load_linear, load_stacked
from worker.models.native_layers import LayerParts, NativeLayers
from worker.models.rms_norm import RmsNorm
from worker.models.rope import NativeRotation, Rope, Rotation, load_rope
from worker.models.stage_model import Attention
from worker.weights import Weights


def load_llama(spec: ModelSpec, stage: Stage, weights: Weights, progress: Progress) -> "LlamaStage":
    norm = _load_norm(weights, "model.norm", spec) if stage.is_last else None
    tokens, head = load_ends(weights, spec, stage, "model.embed_tokens.weight", norm)
    layers = [_Layer(spec, layer, weights) for layer in reported(stage.layers, progress)]
    return LlamaStage(
        embedding=None if tokens is None else Embedding(tokens),
        head=None if head is None else Head(head),
        rope=load_rope(spec, weights),
        layers=layers,
        native=NativeLayers.of([layer.parts() for layer in layers], spec.norm_eps, spec.head_dim**-0.5),
    )


@dataclass(frozen=True, slots=True)
class LlamaStage:
    """One stage of a model of the family; implements StageModel."""

    embedding: Embedding | None  # first stage
    layers: "list[_Layer]"
    rope: Rope
    head: Head | None  # last stage
    native: NativeLayers | None  # the layers in one call, where there are kernels for them

    def forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden = x if self.embedding is None else self.embedding(x, positions)
        rotation = self.rope.at(positions, hidden.dtype)
        if self.native is not None and isinstance(attention, NativeAttention) and isinstance(rotation, NativeRotation):
            return self.native(hidden, rotation, attention)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, index, rotation, attention)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.head is not None, "only the last stage has a head"
        return self.head(hidden)


class _Layer:
    def __init__(self, spec: ModelSpec, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}"
        hidden, ffn, bias = spec.hidden_size, spec.ffn_size, spec.mlp_bias
        self._attend = _Attention(spec, layer, weights)
        norm = _load_norm(weights, f"{name}.post_attention_layernorm", spec)
        parts = (f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        self._gated = load_gated(weights, parts, ffn, hidden, spec.activation, bias=bias, norm=norm)
        self._down = load_linear(weights, f"{name}.mlp.down_proj", hidden, ffn, bias=bias)

    def parts(self) -> LayerParts:
        own = self._attend
        return LayerParts(own.qkv, own.out, self._gated, self._down, own.qk_norm, own.window)

    def __call__(self, x: Tensor, index: int, rotation: Rotation, attention: Attention) -> Tensor:
        x = self._attend(x, index, rotation, attention)
        return self._down(self._gated(x), x)


class _Attention:
    """Norm, projections and rotation around the attention proper, and the residual."""

    def __init__(self, spec: ModelSpec, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.self_attn"
        hidden, q_size, kv_size = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        norm = _load_norm(weights, f"model.layers.{layer}.input_layernorm", spec)
        parts, outs = [f"{name}.{part}_proj" for part in "qkv"], [q_size, kv_size, kv_size]
        self.qkv = load_stacked(weights, parts, outs, hidden, bias=spec.qkv_bias, norm=norm)
        self.out = load_linear(weights, f"{name}.o_proj", hidden, q_size, bias=spec.out_bias)
        self.qk_norm = _load_qk_norm(weights, name, spec) if spec.qk_norm else None
        self._eps = spec.norm_eps
        self._heads, self._kv_heads, self._head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._scale = spec.head_dim**-0.5
        self.window = spec.window(layer)

    def __call__(self, x: Tensor, index: int, rotation: Rotation, attention: Attention) -> Tensor:
        qkv = self.qkv(x).view(x.shape[0], -1, self._head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        qk, v = qkv.split_with_sizes((self._heads + self._kv_heads, self._kv_heads), 1)
        if self.qk_norm is not None:
            qk = F.rms_norm(qk, (self._head_dim,), None, self._eps) * self.qk_norm
        q, k = rotation(qk).split_with_sizes((self._heads, self._kv_heads), 1)
        return self.out(attention(index, q, k, v, scale=self._scale, window=self.window), x)


def _load_qk_norm(weights: Weights, name: str, spec: ModelSpec) -> Tensor:
    """Qwen3's norms in one, [heads + kv_heads, head_dim]: all query heads share a weight, all key heads another."""
    q = weights.get(f"{name}.q_norm.weight", spec.head_dim).expand(spec.num_heads, -1)
    k = weights.get(f"{name}.k_norm.weight", spec.head_dim).expand(spec.num_kv_heads, -1)
    return torch.cat((q, k))


def _load_norm(weights: Weights, name: str, spec: ModelSpec) -> RmsNorm:
    return RmsNorm(weights.get(f"{name}.weight", spec.hidden_size), spec.norm_eps)
