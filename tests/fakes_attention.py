"""The slow plain attention of one job: what a paged one must equal. Keeps keys and values in lists, one per layer."""

import torch
from torch import Tensor


class DenseAttention:
    """Attends over all that it has been given before, and remembers it: `forward` can be called token by token."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        keys = self._keys[layer] = self._grown(self._keys.get(layer), k)
        values = self._values[layer] = self._grown(self._values.get(layer), v)
        group = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("thd,shd->hts", q.float(), keys.float()) * scale  # [heads, tokens, context]
        scores = scores.masked_fill(~self._visible(len(q), len(keys), window), -torch.inf)
        out = torch.einsum("hts,shd->thd", scores.softmax(-1), values.float())
        return out.flatten(1).to(q.dtype)

    @staticmethod
    def _grown(old: Tensor | None, new: Tensor) -> Tensor:
        return new.clone() if old is None else torch.cat((old, new))

    @staticmethod
    def _visible(tokens: int, context: int, window: int | None) -> Tensor:
        query = torch.arange(context - tokens, context).unsqueeze(1)
        key = torch.arange(context)
        visible = key <= query
        return visible if window is None else visible & (key > query - window)
