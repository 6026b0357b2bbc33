"""The parts that the model families share: norms, the two ends of the pipeline, loading with progress."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.model_spec import ModelSpec
from common.topology import Stage
from worker.models.linear import Linear, NormedLinear, PlainLinear
from worker.models.load_linear import make_linear
from worker.models.native_linear import NativeLinear
from worker.models.rms_norm import RmsNorm
from worker.weights import Weights

Progress = Callable[[int, int], None]  # layers loaded, layers in all

Rows = Callable[[Tensor], Tensor]  # [tokens] ids to [tokens, hidden]


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Shifts every row to a mean of zero and scales it to a variance of one."""

    weight: Tensor  # [hidden]
    bias: Tensor  # [hidden]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The beginning of the first stage: token ids to rows, plus learned positions where a family has them."""

    tokens: Rows  # or narrower ones with `project`
    project: Linear | None = None
    positions: Tensor | None = None  # [context + offset, hidden]
    offset: int = 0

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions: [tokens]. Returns [tokens, hidden]."""
        hidden = self.tokens(ids)
        if self.project is not None:
            hidden = self.project(hidden)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.offset, self.positions)
        return hidden


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the last stage: final norm, projection (OPT-350M) and logits."""

    vocabulary: Linear  # hidden, or narrower with `project`, to vocab
    norm: LayerNorm | None = None
    project: Linear | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden: [rows, hidden]. Returns fp32 [rows, vocab]."""
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.project is not None:
            hidden = self.project(hidden)
        return self.vocabulary(hidden).float()


def load_layer_norm(weights: Weights, name: str, spec: ModelSpec) -> LayerNorm:
    size = spec.hidden_size
    return LayerNorm(weights.get(f"{name}.weight", size), weights.get(f"{name}.bias", size), spec.norm_eps)


def load_ends(
    weights: Weights, spec: ModelSpec, stage: Stage, name: str, norm: RmsNorm | None = None
) -> tuple[Rows | None, Linear | None]:
    """The embedding `name` and the head's product, of rows that are normed first if there is a norm.

    Each where the stage has a use for it. If they are tied one matrix serves as both, where its layout allows that.
    """
    shape = (spec.vocab_size, spec.embedding_size or spec.hidden_size)
    embeds = stage.is_first or (stage.is_last and spec.tied_embeddings)
    embedding = weights.matrix(name, *shape) if embeds else None
    head = None
    if stage.is_last:
        matrix = embedding if spec.tied_embeddings else weights.matrix("lm_head.weight", *shape)
        assert matrix is not None
        head = make_linear(matrix, norm=norm)
    if not stage.is_first:
        return None, head
    if isinstance(head, NativeLinear) and spec.tied_embeddings:
        return head.columns, head
    assert embedding is not None
    product = head.product if isinstance(head, NormedLinear) else head
    is_heads = spec.tied_embeddings and isinstance(
        product, PlainLinear
    )  # which keeps this very tensor, if it is one of numbers
    return (embedding if is_heads else embedding.narrowed()).rows, head


def reported(layers: range, progress: Progress) -> Iterator[int]:
    """The layers, one by one; `progress` hears of each when it has been loaded."""
    for done, layer in enumerate(layers):
        progress(done, len(layers))
        yield layer
    progress(len(layers), len(layers))
