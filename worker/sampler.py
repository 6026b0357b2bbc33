"""Draws tokens from logits. A draw depends on the logits, the job's parameters, its seed and the token's position.

No generator is shared and no state is kept, so a token is the same in any batch, on any device, after any preemption.
The filters follow each other as in vLLM: what `worker/shaping.py` does, temperature, min_p, top_k, top_p, each on
what the one before left, renormalized.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.records import Entry, Sampling
from worker.shaping import shape

# The most likely tokens, enough for nearly every draw; the rest of the vocabulary is sorted only where they are not.
_HEAD_TOKENS = 256

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def sample(logits: Tensor, entries: list[Entry]) -> list[int | None]:
    """One token per entry, all of which have a sampling; None where the logits are not finite or all is forbidden.

    logits: fp32 [entries, vocab], overwritten.
    """
    finite = torch.isfinite(logits.amax(1)) & torch.isfinite(logits.amin(1))  # [entries]
    for row, entry in zip(logits, entries, strict=True):
        if entry.shaping is not None:
            shape(row, entry.shaping)
    best = logits.max(1)
    usable = (finite & torch.isfinite(best.values)).tolist()
    tokens: list[int | None] = [t if ok else None for t, ok in zip(best.indices.tolist(), usable, strict=True)]
    rows = [r for r, entry in enumerate(entries) if usable[r] and _sampling(entry).temperature > 0]
    if rows:
        for row, token in zip(rows, _sample_rows(logits[rows], [entries[r] for r in rows]), strict=True):
            tokens[row] = token
    return tokens


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that (seed, position) determines: two rounds of splitmix64, 53 bits."""
    return (_mix(_mix(seed) + position) >> 11) / 2**53


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


@dataclass(frozen=True, slots=True)
class _Filters:
    """The parameters of several rows, as columns: [rows, 1]."""

    min_p: Floats
    top_k: Ints
    top_p: Floats
    draw: Floats
    vocab: int

    @classmethod
    def of(cls, entries: list[Entry], vocab: int) -> "_Filters":
        samplings = [_sampling(entry) for entry in entries]
        positions = [entry.start + len(entry.tokens) for entry in entries]  # of the token that is drawn
        return cls(
            min_p=np.array([[s.min_p] for s in samplings]),
            top_k=np.array([[min(s.top_k or vocab, vocab)] for s in samplings]),
            top_p=np.array([[s.top_p] for s in samplings]),
            draw=np.array([[uniform(s.seed, p)] for s, p in zip(samplings, positions, strict=True)]),
            vocab=vocab,
        )

    def take(self, rows: Ints) -> "_Filters":
        return _Filters(self.min_p[rows], self.top_k[rows], self.top_p[rows], self.draw[rows], self.vocab)


def _sampling(entry: Entry) -> Sampling:
    assert entry.sampling is not None, f"job {entry.job_id} wants no token"
    return entry.sampling


def _sample_rows(logits: Tensor, entries: list[Entry]) -> list[int]:
    """Draw from rows [rows, vocab] whose temperatures are not 0."""
    temperatures = torch.tensor([[_sampling(e).temperature] for e in entries], device=logits.device)
    # Less the maximum before the division: a tiny temperature must not overflow.
    probabilities = logits.sub_(logits.amax(1, keepdim=True)).div_(temperatures).softmax(1)
    filters = _Filters.of(entries, logits.shape[1])
    tokens, decided = _draw(*_head(probabilities), filters)
    (open_rows,) = np.nonzero(~decided)
    if len(open_rows):
        ranked = probabilities[torch.from_numpy(open_rows).to(logits.device)].sort(dim=1, descending=True, stable=True)
        everything = np.full((len(open_rows), 1), logits.shape[1])
        tokens[open_rows], _ = _draw(*_to_numpy(*ranked), everything, filters.take(open_rows))
    return [int(token) for token in tokens]


def _head(probabilities: Tensor) -> tuple[Floats, Ints, Ints]:
    """The most likely tokens in order: probabilities and ids, [rows, head], and how many are sure, [rows, 1].

    Equal ones are ordered by id, as in the full sort. The last value of the head may go on behind it, in ids that
    were left out: such tokens are not sure.
    """
    values, ids = probabilities.topk(min(_HEAD_TOKENS, probabilities.shape[1]), dim=1, sorted=False)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    head, ids_by_rank = _to_numpy(values, ids.gather(1, order))
    if head.shape[1] == probabilities.shape[1]:
        return head, ids_by_rank, np.full((len(head), 1), head.shape[1])
    return head, ids_by_rank, (head > head[:, -1:]).sum(1, keepdims=True)


def _draw(ranked: Floats, ids: Ints, sure: Ints, filters: _Filters) -> tuple[Ints, NDArray[np.bool_]]:
    """Invert the cumulative distribution over what the filters leave of `ranked`, [rows, ranks] in falling order.

    Only the first `sure` ranks ([rows, 1]) have a sure token. Returns tokens, and whether the ranks were enough to
    decide them, both [rows].
    """
    cumulative = ranked.cumsum(1)  # fp64, so that a head has the same sums as the whole

    def mass(count: Ints) -> Floats:  # of the first `count` ranks, or of the whole vocabulary
        inside = np.take_along_axis(cumulative, np.minimum(count, ranked.shape[1]) - 1, 1)
        return np.where(count <= sure, inside, 1.0)

    likely = np.where(filters.min_p > 0, _count(ranked >= filters.min_p * ranked[:, :1]), filters.vocab)
    kept = np.minimum(likely, filters.top_k)
    nucleus = np.minimum(_count(cumulative < filters.top_p * mass(kept)) + 1, kept)
    nucleus = np.where(filters.top_p < 1, nucleus, kept)
    known = ((kept <= sure) | (kept == filters.vocab)) & ((nucleus <= sure) | (nucleus == filters.vocab))
    rank = np.minimum(_count(cumulative <= filters.draw * mass(nucleus)), nucleus - 1)
    tokens = np.take_along_axis(ids, np.minimum(rank, ids.shape[1] - 1), 1)
    return tokens[:, 0], (known & (rank < sure))[:, 0]


def _count(flags: NDArray[np.bool_]) -> Ints:
    counts: Ints = flags.sum(1, keepdims=True)
    return counts


def _to_numpy(values: Tensor, ids: Tensor) -> tuple[Floats, Ints]:
    return values.double().cpu().numpy(), ids.cpu().numpy()
