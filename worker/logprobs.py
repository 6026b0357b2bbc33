"""Log probabilities of drawn tokens, for the entries of a batch that want them. Draws nothing."""

import torch
from torch import Tensor

from common.records import Entry, Logprobs


class RawDistribution:
    """What the model said, kept before the sampler overwrites the logits."""

    def __init__(self, logits: Tensor, entries: list[Entry]) -> None:
        """logits: fp32 [entries, vocab]."""
        self._num_entries = len(entries)
        self._wanted = [(row, entry.logprobs) for row, entry in enumerate(entries) if entry.logprobs is not None]
        rows = [row for row, _ in self._wanted]
        self._logprobs = logits[rows].log_softmax(1) if rows else logits[:0]  # [rows that want them, vocab]

    def of(self, drawn: list[int | None]) -> list[Logprobs | None]:
        """Those of the tokens that were drawn, one per entry; nothing when no entry wants any."""
        if not self._wanted:
            return []
        answers: list[Logprobs | None] = [None] * self._num_entries
        tops = self._top(max(count for _, count in self._wanted))
        for (row, count), values, top in zip(self._wanted, self._logprobs, tops, strict=True):
            token = drawn[row]
            if token is not None:
                answers[row] = Logprobs(values[token].item(), top[:count])
        return answers

    def _top(self, count: int) -> list[list[tuple[int, float]]]:
        values, ids = torch.topk(self._logprobs, min(count, self._logprobs.shape[1]), dim=1)
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return [list(zip(row_ids, row_values, strict=True)) for row_ids, row_values in pairs]
