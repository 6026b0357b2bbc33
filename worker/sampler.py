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
from worker.transfer import Ints, to_device, to_host

# The most likely tokens, enough for nearly every draw; the rest of the vocabulary is sorted only where they are not.
_HEAD_TOKENS = 256

Floats = NDArray[np.float64]


def sample(logits: Tensor, entries: list[Entry]) -> list[int | None]:
    """One token per entry, all of which have a sampling; None where the logits are not finite or all is forbidden.

    logits: fp32 [entries, vocab], overwritten.
    """
    finite = torch.isfinite(logits.amax(1)) & torch.isfinite(logits.amin(1))  # [entries]
    for row, entry in zip(logits, entries, strict=True):
        if entry.shaping is not None:
            shape(row, entry.shaping)
    best = logits.max(1)
    usable = finite & torch.isfinite(best.values)
    random = [r for r, entry in enumerate(entries) if _sampling(entry).temperature > 0]
    probabilities = _probabilities(logits, random, entries) if random else None
    # What was launched up to here is fetched together, so that a GPU is waited for once.
    can, likeliest, *head = to_host(usable, best.indices, *(() if probabilities is None else _head(probabilities)))
    tokens: list[int | None] = [t if ok else None for t, ok in zip(likeliest.tolist(), can.tolist(), strict=True)]
    rows = [i for i, r in enumerate(random) if can[r]]  # of those that are drawn from
    if probabilities is not None and rows:
        values, ids = head
        drawn = _sample_rows(probabilities, values, ids, np.array(rows), [entries[random[i]] for i in rows])
        for i, token in zip(rows, drawn, strict=True):
            tokens[random[i]] = token
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


def _probabilities(logits: Tensor, rows: list[int], entries: list[Entry]) -> Tensor:
    """Of `rows`, whose temperatures are not 0: [rows, vocab]."""
    temperatures = np.array([[_sampling(entries[r]).temperature] for r in rows], dtype=np.float32)
    own = logits[to_device(np.array(rows), logits.device)]
    # Less the maximum before the division: a tiny temperature must not overflow.
    return own.sub_(own.amax(1, keepdim=True)).div_(to_device(temperatures, logits.device)).softmax(1)


def _head(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely tokens in order: probabilities and ids, [rows, head]. Equal ones are ordered by id."""
    values, ids = probabilities.topk(min(_HEAD_TOKENS, probabilities.shape[1]), dim=1, sorted=False)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _sample_rows(
    probabilities: Tensor, head: NDArray[np.float32], ids: Ints, rows: Ints, entries: list[Entry]
) -> list[int]:
    """Draw from `rows` of probabilities and of their head, one token per entry."""
    vocab = probabilities.shape[1]
    filters, ranked = _Filters.of(entries, vocab), head[rows].astype(np.float64)
    tokens, decided = _draw(ranked, ids[rows], _sure(ranked, vocab), filters)
    (open_rows,) = np.nonzero(~decided)
    if len(open_rows):
        undecided = probabilities[to_device(rows[open_rows], probabilities.device)]
        values, ids = to_host(*undecided.sort(dim=1, descending=True, stable=True))
        everything = np.full((len(open_rows), 1), vocab)
        tokens[open_rows], _ = _draw(values.astype(np.float64), ids, everything, filters.take(open_rows))
    return [int(token) for token in tokens]


def _sure(head: Floats, vocab: int) -> Ints:
    """How many ranks have the token that a full sort gives them, [rows, 1].

    The last value of a head may go on behind it, in ids that were left out: such tokens are not sure.
    """
    return np.full((len(head), 1), vocab) if head.shape[1] == vocab else _count(head > head[:, -1:])


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
