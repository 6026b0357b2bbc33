"""The transformer block of OPT and GPT-2: LayerNorm, as many key/value heads as query heads, two matrices after it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.models.layers import Embedding, Head, LayerNorm
from worker.models.linear import Linear
from worker.models.stage_model import Attention


@dataclass(frozen=True, slots=True)
class Block:
    """Attention and MLP, each with its residual."""

    attention_norm: LayerNorm
    qkv: Linear
    out: Linear
    mlp_norm: LayerNorm
    up: Linear
    down: Linear
    activation: Callable[[Tensor], Tensor]
    num_heads: int
    norm_first: bool  # False: each norm follows its residual (OPT-350M)

    def __call__(self, x: Tensor, index: int, attention: Attention) -> Tensor:
        if self.norm_first:
            x = self._attend(self.attention_norm(x), x, index, attention)
            return self._mlp(self.mlp_norm(x), x)
        x = self.attention_norm(self._attend(x, x, index, attention))
        return self.mlp_norm(self._mlp(x, x))

    def _attend(self, x: Tensor, residual: Tensor, index: int, attention: Attention) -> Tensor:
        qkv = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1)  # [tokens, 3, heads, head_dim]
        q, k, v = qkv.unbind(1)
        return self.out(attention(index, q, k, v, scale=q.shape[-1] ** -0.5, window=None), residual)

    def _mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)), residual)


@dataclass(frozen=True, slots=True)
class BlockStage:
    """One stage made of such blocks; implements StageModel."""

    embedding: Embedding | None  # first stage
    blocks: list[Block]
    head: Head | None  # last stage

    def forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        hidden = x if self.embedding is None else self.embedding(x, positions)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, index, attention)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.head is not None, "only the last stage has a head"
        return self.head(hidden)
