"""The parts that the model families share: norms, the two ends of the pipeline, loading with progress."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.model_spec import Activation, ModelSpec
from common.topology import Stage
from worker.models.linear import Linear, linear
from worker.weights import Weights

Progress = Callable[[int, int], None]  # layers loaded, layers in all

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Scales every row to a mean square of one; computed in fp32 whatever the type."""

    weight: Tensor  # [hidden]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


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

    tokens: Tensor  # [vocab, hidden], or narrower with `project`
    project: Linear | None = None
    positions: Tensor | None = None  # [context + offset, hidden]
    offset: int = 0

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions: [tokens]. Returns [tokens, hidden]."""
        hidden = F.embedding(ids, self.tokens)
        if self.project is not None:
            hidden = self.project(hidden)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.offset, self.positions)
        return hidden


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the last stage: final norm, projection (OPT-350M) and logits."""

    vocabulary: Linear  # hidden, or narrower with `project`, to vocab
    norm: RmsNorm | LayerNorm | None
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


def load_ends(weights: Weights, spec: ModelSpec, stage: Stage, name: str) -> tuple[Tensor | None, Linear | None]:
    """The embedding `name` and the head's product, each where the stage has a use for it; read once if tied."""
    shape = (spec.vocab_size, spec.embedding_size or spec.hidden_size)
    embeds = stage.is_first or (stage.is_last and spec.tied_embeddings)
    embedding = weights.get(name, *shape) if embeds else None
    head = None
    if stage.is_last:
        head = embedding if spec.tied_embeddings else weights.get("lm_head.weight", *shape)
    return (embedding if stage.is_first else None), (None if head is None else linear(head))


def reported(layers: range, progress: Progress) -> Iterator[int]:
    """The layers, one by one; `progress` hears of each when it has been loaded."""
    for done, layer in enumerate(layers):
        progress(done, len(layers))
        yield layer
    progress(len(layers), len(layers))
