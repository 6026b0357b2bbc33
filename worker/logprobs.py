"""Log probabilities of tokens that were drawn, or that are there already. Draws nothing."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.records import Entry, Logprobs
from worker.transfer import to_device, to_host

# Rows of logits at once: those of a long prompt would take gigabytes.
_ROWS = 128


class RawDistribution:
    """What the model said, kept before the sampler overwrites the logits; for the entries that want logprobs."""

    def __init__(self, logits: Tensor, entries: list[Entry]) -> None:
        """logits: fp32 [entries, vocab]."""
        self._num_entries = len(entries)
        self._wanted = {row: entry.logprobs for row, entry in enumerate(entries) if entry.logprobs is not None}
        if self._wanted:
            rows = to_device(np.array(list(self._wanted), dtype=np.int64), logits.device)
            self._logprobs = logits[rows].log_softmax(1)  # [wanted, vocab]

    def of(self, drawn: list[int | None]) -> list[Logprobs | None]:
        """Those of the tokens that were drawn, one per entry; nothing when no entry wants any."""
        if not self._wanted:
            return []
        answers: list[Logprobs | None] = [None] * self._num_entries
        tokens = [drawn[row] or 0 for row in self._wanted]
        described = _describe(self._logprobs, tokens, max(self._wanted.values()))
        for (row, count), said in zip(self._wanted.items(), described, strict=True):
            if drawn[row] is not None:
                answers[row] = Logprobs(said.drawn, said.top[:count])
        return answers


def score(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, entry: Entry) -> list[Logprobs]:
    """Those of the entry's `scored`. hidden: [tokens, hidden_size], the entry's own rows."""
    answers: list[Logprobs] = []
    for first in range(0, len(entry.scored), _ROWS):
        tokens = entry.scored[first : first + _ROWS]
        logprobs = logits_of(hidden[first : first + len(tokens)]).log_softmax(1)
        answers += _describe(logprobs, tokens, entry.logprobs or 0)
    return answers


def _describe(logprobs: Tensor, tokens: list[int], count: int) -> list[Logprobs]:
    """One of `tokens` per row of `logprobs`, [rows, vocab], each with the `count` most likely."""
    values, ids = torch.topk(logprobs, min(count, logprobs.shape[1]), dim=1)
    drawn = logprobs.gather(1, to_device(np.array(tokens), logprobs.device).unsqueeze(1)).squeeze(1)
    rows = zip(*(numbers.tolist() for numbers in to_host(drawn, ids, values)), strict=True)
    return [Logprobs(one, list(zip(row_ids, row_values, strict=True))) for one, row_ids, row_values in rows]
