"""What the runner needs of a model, and what a model needs of the attention: the two interfaces between them."""

from typing import Protocol

from torch import Tensor


class Attention(Protocol):
    """Stores this batch's keys and values in the cache, then attends over each job's whole context."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Attend in one layer.

        layer: index within this stage. q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim], after
        rotation and norms, not always contiguous; `tokens` runs over the batch, job after job. A token sees the last
        `window` positions up to and with its own (None: all of them). Returns [tokens, heads * head_dim].
        """
        ...


class StageModel(Protocol):
    """One stage's layers and weights."""

    def forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Run the layers.

        x: [tokens] ids in the first stage, [tokens, hidden] after it; positions: [tokens], of each token in its job.
        Returns [tokens, hidden].
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head, last stage only.

        hidden: [rows, hidden], the rows that are sampled. Returns fp32 [rows, vocab].
        """
        ...
