"""Draws tokens from logits. A draw depends on the logits, the job's parameters, its seed and the token's position.

No generator is shared and no state is kept, so a token is the same in any batch, on any device, after any preemption.
The filters follow each other as in vLLM: what `worker/shaping.py` does, temperature, min_p, top_k, top_p, each on
what the one before left, renormalized. Where one of the last three cuts, tokens stand in order of probability when one
is drawn; else in order of their ids, which needs no sort.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.records import Entry, Sampling
from worker.native_draws import NativeDraws, open_draws
from worker.shaping import shape
from worker.transfer import Ints, to_device, to_host

# The most likely tokens, enough for nearly every draw; the rest of the vocabulary is sorted only where they are not.
_HEAD_TOKENS = 256
# Rows in which all tokens are ranked at once: a few arrays of 64 bits for each token, 16 MB each with 128,000 of them.
_RANKED_ROWS = 16
# Tokens of which a draw sees the sum before it sees each: about the root of a vocabulary.
_CHUNK_TOKENS = 256
# Of a probability. Those of a row are fewer than 2^53, so fp64 can tell any two numbers of them apart.
_UNITS = 2.0**52
# Of an fp32 number that is not negative.
_LARGEST_BITS = 2**31 - 1

Floats = NDArray[np.float64]


def sample(logits: Tensor, entries: list[Entry]) -> list[int | None]:
    """One token per entry, all of which have a sampling; None where the logits are not finite or all is forbidden.

    logits: fp32 [entries, vocab], overwritten.
    """
    whole, cut = _random_rows(entries, logits.shape[1])
    native = open_draws() if logits.device.type == "cpu" else None
    if native is None:
        usable, drawn = _draw_whole(logits, entries, whole)
    else:
        usable, drawn = _draw_natively(native, logits, entries, whole)
    probabilities = _probabilities(logits, cut, entries) if cut else None
    # What was launched up to here is fetched together, so that a GPU is waited for once.
    head = () if probabilities is None else _head(probabilities)
    can, tokens, *ranked = to_host(usable, drawn, *head)
    rows = np.array([i for i, r in enumerate(cut) if can[r]], dtype=np.int64)
    if probabilities is not None and len(rows):
        places, (values, ids) = np.array(cut)[rows], ranked
        tokens[places] = _sample_rows(probabilities, rows, values[rows], ids[rows], [entries[r] for r in places])
    return [token if ok else None for token, ok in zip(tokens.tolist(), can.tolist(), strict=True)]


def _draw_whole(logits: Tensor, entries: list[Entry], whole: list[int]) -> tuple[Tensor, Tensor]:
    """Shape all rows, draw for those in `whole`, take the likeliest of the others: usable and drawn, both [entries]."""
    finite = torch.isfinite(logits.amax(1)) & torch.isfinite(logits.amin(1))
    for row, entry in zip(logits, entries, strict=True):
        if entry.shaping is not None:
            shape(row, entry.shaping)
    usable, drawn = finite & torch.isfinite(logits.amax(1)), _likeliest(logits)
    if whole:
        draws = to_device(np.array([_draw_of(entries[r]) for r in whole]), logits.device)
        drawn[to_device(np.array(whole), logits.device)] = invert(_probabilities(logits, whole, entries), draws)
    return usable, drawn


def _draw_natively(
    native: NativeDraws, logits: Tensor, entries: list[Entry], whole: list[int]
) -> tuple[Tensor, Tensor]:
    """The same, by the kernel."""
    finite = np.ones(len(entries), np.bool_)
    for row, entry in enumerate(entries):
        if entry.shaping is not None:
            finite[row] = logits[row].isfinite().all()
            shape(logits[row], entry.shaping)
    temperatures, draws = [0.0] * len(entries), [0.0] * len(entries)
    for row in whole:
        temperatures[row], draws[row] = _sampling(entries[row]).temperature, _draw_of(entries[row])
    tokens = native(logits, temperatures, draws, [entry.shaping is not None for entry in entries])
    return torch.from_numpy(finite & (tokens >= 0)), torch.from_numpy(tokens)


def invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Invert the cumulative distribution in order of ids: a token per row, never one whose probability is 0.

    probabilities: fp32 [rows, vocab] with sums of about 1, overwritten; a row of NaN gives any token. draws: fp64
    [rows] in [0, 1). Sums are of whole numbers, hence the same in any order: no device and no batch can change them.
    """
    rows, vocab = probabilities.shape
    units = probabilities.new_zeros(rows, -(-vocab // _CHUNK_TOKENS), _CHUNK_TOKENS, dtype=torch.int64)
    units.view(rows, -1)[:, :vocab] = probabilities.mul_(_UNITS)
    chunks = units.sum(2)
    # Less than the sum, also when rounded: a draw is at most 1 - 2^-53.
    unit = (draws * chunks.sum(1)).long()
    chunk, unit = _place(chunks, unit)
    place, _ = _place(units[torch.arange(rows, device=units.device), chunk], unit)
    return chunk * _CHUNK_TOKENS + place


def _place(counts: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """In which of the `counts`, [rows, places], every row's unit is, and its number there. Garbage gives some place."""
    ends = counts.cumsum(1)
    place = (ends[:, :-1] <= unit.unsqueeze(1)).sum(1)
    return place, unit - (ends - counts).gather(1, place.unsqueeze(1)).squeeze(1)


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
        return cls(
            min_p=np.array([[s.min_p] for s in samplings]),
            top_k=np.array([[min(s.top_k or vocab, vocab)] for s in samplings]),
            top_p=np.array([[s.top_p] for s in samplings]),
            draw=np.array([[_draw_of(entry)] for entry in entries]),
            vocab=vocab,
        )

    def take(self, rows: Ints) -> "_Filters":
        return _Filters(self.min_p[rows], self.top_k[rows], self.top_p[rows], self.draw[rows], self.vocab)


def _sampling(entry: Entry) -> Sampling:
    assert entry.sampling is not None, f"job {entry.job_id} wants no token"
    return entry.sampling


def _draw_of(entry: Entry) -> float:
    return uniform(_sampling(entry).seed, entry.start + len(entry.tokens))  # the position of the token that is drawn


def _random_rows(entries: list[Entry], vocab: int) -> tuple[list[int], list[int]]:
    """The rows whose temperatures are not 0: those that draw from the whole vocabulary, and those with filters."""
    whole: list[int] = []
    cut: list[int] = []
    for row, sampling in enumerate(map(_sampling, entries)):
        if sampling.temperature > 0:
            filtered = sampling.min_p > 0 or 0 < sampling.top_k < vocab or sampling.top_p < 1
            (cut if filtered else whole).append(row)
    return whole, cut


def _likeliest(logits: Tensor) -> Tensor:
    """The token of the largest logit, [entries]; of equal ones the first."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(1))  # numpy's takes a fifth of the time of torch's
    return logits.argmax(1)


def _probabilities(logits: Tensor, rows: list[int], entries: list[Entry]) -> Tensor:
    """Of `rows`, at least one, whose temperatures are not 0: [rows, vocab]."""
    temperatures = np.array([[_sampling(entries[r]).temperature] for r in rows], dtype=np.float32)
    own = logits if len(rows) == len(logits) else logits[to_device(np.array(rows), logits.device)]
    if (temperatures != 1).any():
        # Less the maximum before the division: a tiny temperature must not overflow.
        own = own.sub_(own.amax(1, keepdim=True)).div_(to_device(temperatures, logits.device))
    return own.softmax(1)


def _head(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely tokens in order: probabilities and ids, [rows, head]. Equal ones are ordered by id."""
    values, ids = probabilities.topk(min(_HEAD_TOKENS, probabilities.shape[1]), dim=1, sorted=False)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _all_ranked(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens in the order of `_head`. They are sorted as whole numbers: by falling probability, then by id."""
    bits = probabilities.view(torch.int32).long()  # ordered as the numbers are
    keys = (_LARGEST_BITS - bits << 32) + torch.arange(probabilities.shape[1], device=probabilities.device)
    # numpy's sort takes a tenth of the time of torch's.
    keys = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values
    return (_LARGEST_BITS - (keys >> 32)).int().view(torch.float32), keys & 0xFFFFFFFF


def _sample_rows(
    probabilities: Tensor, rows: Ints, values: NDArray[np.float32], ids: Ints, entries: list[Entry]
) -> Ints:
    """Draw from `rows` of probabilities, one token per entry. values, ids: the heads of these rows."""
    vocab = probabilities.shape[1]
    filters = _Filters.of(entries, vocab)
    tokens, decided = _draw(values.astype(np.float64), ids, filters)
    (left,) = np.nonzero(~decided)
    for first in range(0, len(left), _RANKED_ROWS):
        some = left[first : first + _RANKED_ROWS]
        undecided = probabilities[to_device(rows[some], probabilities.device)]
        values, ids = to_host(*_all_ranked(undecided))
        tokens[some], _ = _draw(values.astype(np.float64), ids, filters.take(some))
    return tokens


def _draw(ranked: Floats, ids: Ints, filters: _Filters) -> tuple[Ints, NDArray[np.bool_]]:
    """Invert the cumulative distribution over what the filters leave of `ranked`, [rows, ranks] in falling order.

    Returns tokens, and whether the ranks were enough to decide them, both [rows].
    """
    sure = _sure(ranked, filters.vocab)
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


def _sure(ranked: Floats, vocab: int) -> Ints:
    """How many ranks have the token that a full sort gives them, [rows, 1].

    The last value of a head may go on behind it, in ids that were left out: such tokens are not sure.
    """
    return np.full((len(ranked), 1), vocab) if ranked.shape[1] == vocab else _count(ranked > ranked[:, -1:])


def _count(flags: NDArray[np.bool_]) -> Ints:
    counts: Ints = flags.sum(1, keepdims=True)
    return counts
