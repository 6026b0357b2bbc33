"""The sampler against the definitions, written plainly over one row in numpy."""

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
import torch
from fakes_worker import DEVICES, GREEDY
from hypothesis import given
from hypothesis import strategies as st

from common.records import Entry, Penalties, Sampling, Shaping, pack_blocks
from worker import sampler
from worker.sampler import invert, sample, uniform

# Larger than the head that the sampler sorts, so that both ways are taken.
VOCAB = 1000
# Many chunks, and no whole number of them.
LARGE_VOCAB = 10_001


@pytest.fixture(params=["native", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All holds for the kernel and for torch."""
    if request.param == "torch":
        monkeypatch.setattr(sampler, "open_draws", lambda: None)
    elif sampler.open_draws() is None:
        pytest.skip("no C compiler")


def random_logits(rows: int, *, spread: float = 2.0, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def sampling(**changes: float) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0} | changes)


def entry(sampling: Sampling, *, position: int = 1, shaping: Shaping | None = None) -> Entry:
    return Entry(0, position - 1, [0], pack_blocks([0]), sampling, shaping)


def expected_token(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """The definition: sort if anything is cut, cut by min_p, then top_k, then top_p, and invert the distribution."""
    scaled = logits.astype(np.float64) / sampling.temperature
    cut = sampling.min_p > 0 or 0 < sampling.top_k < len(logits) or sampling.top_p < 1
    order = np.argsort(-scaled, kind="stable") if cut else np.arange(len(logits))
    p = np.exp(scaled[order] - scaled.max())
    p /= p.sum()
    p = p[p >= sampling.min_p * p[0]]
    p = p[: sampling.top_k or None]
    p /= p.sum()
    p = p[: int((p.cumsum() < sampling.top_p).sum()) + 1]
    p /= p.sum()
    return int(order[(p.cumsum() <= uniform(sampling.seed, position)).sum()])


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 600},
    {"top_k": 5000},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.3},
    {"min_p": 1e-6},
    {"min_p": 1.0},
    {"temperature": 5.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 4.0, "top_k": 700, "top_p": 0.95, "min_p": 1e-4},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_filters_follow_their_definitions(changes: dict[str, float], device: str) -> None:
    logits = random_logits(64)
    samplings = [sampling(seed=seed, **changes) for seed in range(64)]
    expected = [expected_token(row.numpy(), s, 5) for row, s in zip(logits, samplings, strict=True)]
    assert sample(logits.to(device), [entry(s, position=5) for s in samplings]) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", [{}, {"top_k": 5000}, {"top_p": 0.9}, {"top_p": 0.9999}, {"min_p": 1e-6}], ids=str)
def test_large_vocabularies_follow_the_definitions_too(changes: dict[str, float], device: str) -> None:
    logits = random_logits(20, spread=1.0, vocab=LARGE_VOCAB)
    samplings = [sampling(seed=seed, **changes) for seed in range(20)]
    expected = [expected_token(row.numpy(), s, 5) for row, s in zip(logits, samplings, strict=True)]
    assert sample(logits.to(device), [entry(s, position=5) for s in samplings]) == expected


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 0.5, 1.0, 3.0]), min_size=1, max_size=700).filter(
        lambda weights: max(weights) >= 0.5
    ),
    draws=st.lists(st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53]), min_size=1, max_size=3),
)
def test_inverting_equals_walking_along_the_cumulative_distribution(weights: list[float], draws: list[float]) -> None:
    row = torch.tensor(weights)
    row /= row.sum()
    units = [int(p * 2**52) for p in row.tolist()]
    ends, total = list(accumulate(units)), sum(units)
    expected = [next(token for token, end in enumerate(ends) if end > int(draw * total)) for draw in draws]
    tokens = invert(row.repeat(len(draws), 1), torch.tensor(draws, dtype=torch.float64)).tolist()
    assert tokens == expected
    assert all(weights[token] > 0 for token in tokens)


@pytest.mark.parametrize("allowed", [[0], [255, 256], [511], [999], [300, 301, 700]], ids=str)
def test_the_least_and_the_greatest_draw_give_tokens_that_are_allowed(allowed: list[int]) -> None:
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[:, allowed] = torch.tensor([0.1 * token for token in allowed]).sin()
    tokens = invert(logits.softmax(1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [allowed[0], allowed[-1]]


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = random_logits(3)
    expected = logits.argmax(1).tolist()
    assert sample(logits, [entry(GREEDY)] * 3) == expected


def test_a_tiny_temperature_is_nearly_greedy_and_never_overflows() -> None:
    logits = random_logits(8)
    expected = logits.argmax(1).tolist()
    assert sample(logits, [entry(sampling(temperature=1e-38, seed=i)) for i in range(8)]) == expected


def test_top_p_keeps_no_more_than_reaches_it() -> None:
    assert sample(torch.zeros(20, 2), [entry(sampling(seed=i, top_p=0.5)) for i in range(20)]) == [0] * 20


def test_equal_probabilities_are_ordered_by_token() -> None:
    logits = torch.zeros(50, VOCAB)
    entries = [entry(sampling(seed=seed, top_k=[0, 300][seed % 2])) for seed in range(50)]
    expected = [int(uniform(seed, 1) * [VOCAB, 300][seed % 2]) for seed in range(50)]
    assert sample(logits, entries) == expected


@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.5}], ids=str)
def test_frequencies_follow_the_probabilities(changes: dict[str, float]) -> None:
    draws = 4000
    row = torch.tensor([2.0, 1.5, 1.0, 1.0, 0.0, -0.5, -1.0, -3.0])
    tokens = sample(row.repeat(draws, 1), [entry(sampling(seed=1, **changes), position=p) for p in range(1, draws + 1)])
    counts = Counter(tokens)
    p = torch.softmax(row / changes.get("temperature", 1.0), 0)
    kept = p >= changes.get("min_p", 0.0) * p.max()
    kept &= torch.arange(8) < changes.get("top_k", 8)
    kept &= p.cumsum(0) - p < changes.get("top_p", 1.0)
    p = torch.where(kept, p, 0) / p[kept].sum()
    assert set(counts) <= set(kept.nonzero().flatten().tolist())
    chi_square = sum((counts[i] - draws * p[i]) ** 2 / (draws * p[i]) for i in range(8) if p[i] > 0)
    assert chi_square < 24.3  # 99.9 % of fair draws of up to 8 kinds


def test_a_draw_is_the_same_again_and_does_not_depend_on_the_others_in_the_batch() -> None:
    logits = random_logits(6, vocab=49_152)
    entries = [entry(sampling(seed=i, **FILTERS[i]), position=10 + i) for i in range(6)]
    together = sample(logits.clone(), entries)
    alone = [sample(logits[i : i + 1].clone(), entries[i : i + 1])[0] for i in range(6)]
    backwards = sample(logits.flip(0).clone(), entries[::-1])
    assert together == alone == backwards[::-1]


def test_what_a_draw_inverts_is_the_same_bits_alone_and_by_any_number_of_threads() -> None:
    logits = random_logits(64, vocab=49_152)
    draws = torch.tensor([uniform(seed, 1) for seed in range(64)], dtype=torch.float64)
    together = invert(logits.softmax(1), draws)
    alone = [int(invert(row.unsqueeze(0).softmax(1), draw.view(1))) for row, draw in zip(logits, draws, strict=True)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        assert torch.equal(invert(logits.softmax(1), draws), together)
    finally:
        torch.set_num_threads(threads)
    assert together.tolist() == alone


@pytest.mark.parametrize("vocab", [1, 7, 255, 256, 257, 1000])
def test_the_native_draw_is_that_of_torch_for_any_size_of_the_vocabulary(
    vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(50, vocab=vocab)
    entries = [entry(sampling(seed=seed, temperature=seed % 3)) for seed in range(50)]
    native = sample(logits.clone(), entries)
    monkeypatch.setattr(sampler, "open_draws", lambda: None)
    assert sample(logits, entries) == native


def test_all_kinds_of_rows_are_drawn_as_they_would_be_by_themselves() -> None:
    entries = [
        entry(GREEDY),
        entry(sampling(seed=1)),
        entry(sampling(seed=2, top_p=0.8)),
        entry(sampling(seed=3, temperature=2.0), shaping=Shaping(forbidden=[0, 1])),
        entry(sampling(seed=4, top_k=3, temperature=0.1)),
    ]
    logits = random_logits(5)
    logits[4, 3] = torch.nan
    alone = [sample(logits[i : i + 1].clone(), entries[i : i + 1])[0] for i in range(5)]
    assert sample(logits, entries) == alone
    assert alone[4] is None


def test_a_draw_does_not_depend_on_how_its_position_was_reached() -> None:
    logits = random_logits(1)
    decoded = Entry(0, 11, [5], pack_blocks([0]), sampling(seed=3))
    recomputed = Entry(0, 0, list(range(12)), pack_blocks([0]), sampling(seed=3))
    assert sample(logits.clone(), [decoded]) == sample(logits.clone(), [recomputed])


def test_positions_and_seeds_give_different_numbers_spread_evenly() -> None:
    numbers = [uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(1000)]
    assert len(set(numbers)) == 3000
    assert all(0 <= number < 1 for number in numbers)
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(300, abs=70)


def test_what_bends_the_logits_of_one_row_leaves_the_others_alone() -> None:
    logits = torch.tensor([[4.0, 3.0, 1.0]]).repeat(4, 1)
    entries = [
        entry(GREEDY),
        entry(GREEDY, shaping=Shaping(penalties=Penalties(3.0, 0.0, 1.0, [], [0]))),
        entry(GREEDY, shaping=Shaping(forbidden=[0, 1])),
        entry(GREEDY),
    ]
    assert sample(logits, entries) == [0, 1, 2, 0]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = random_logits(200)
    forbidden = list(range(0, VOCAB, 2))
    tokens = sample(
        logits, [entry(sampling(seed=i, temperature=5.0), shaping=Shaping(forbidden=forbidden)) for i in range(200)]
    )
    assert all(token is not None and token % 2 == 1 for token in tokens)


def test_a_row_that_is_not_finite_gives_none_and_leaves_the_others_alone() -> None:
    logits = random_logits(5)
    entries = [entry(sampling(seed=i)) for i in range(5)]
    expected = sample(logits.clone(), entries)
    for row, value in ((0, torch.nan), (2, torch.inf), (3, -torch.inf)):
        logits[row, 17] = value
    assert sample(logits, entries) == [None, expected[1], None, None, expected[4]]


def test_a_row_in_which_all_is_forbidden_gives_none() -> None:
    logits = torch.zeros(2, 3)
    assert sample(logits, [entry(sampling(), shaping=Shaping(forbidden=[0, 1, 2])), entry(GREEDY)]) == [None, 0]
