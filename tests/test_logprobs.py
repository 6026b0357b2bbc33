"""Log probabilities of drawn tokens: the model's own, whatever was done to its logits."""

import pytest
import torch
from fakes_worker import GREEDY

from common.records import Entry, Shaping, pack_blocks
from worker.logprobs import RawDistribution, score
from worker.sampler import sample


def entry(logprobs: int | None, shaping: Shaping | None = None) -> Entry:
    return Entry(0, 0, [0], pack_blocks([0]), GREEDY, shaping, logprobs)


def test_nobody_pays_for_what_nobody_wants() -> None:
    assert RawDistribution(torch.zeros(2, 5), [entry(None), entry(None)]).of([1, 2]) == []


def test_only_those_who_want_them_get_them_and_as_many_as_they_want() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    expected = logits.log_softmax(1)
    found = RawDistribution(logits, [entry(0), entry(None), entry(3), entry(99)]).of([4, 5, 6, 7])
    assert [said and len(said.top) for said in found] == [0, None, 3, 50]
    for row in (0, 2, 3):
        said = found[row]
        assert said is not None
        assert said.drawn == pytest.approx(expected[row, 4 + row].item())
        ids = expected[row].argsort(descending=True)[: len(said.top)].tolist()
        assert said.top == [(i, pytest.approx(expected[row, i].item())) for i in ids]


def test_they_are_of_what_the_model_said_before_anything_bent_it() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    expected = logits.log_softmax(1)[0]
    entries = [entry(1, Shaping(forbidden=[0]))]
    raw = RawDistribution(logits, entries)
    drawn = sample(logits, entries)
    [said] = raw.of(drawn)
    assert drawn == [1]
    assert said is not None
    assert said.drawn == pytest.approx(expected[1].item())
    assert said.top == [(0, pytest.approx(expected[0].item()))]


def test_where_no_token_could_be_drawn_there_is_nothing_to_say() -> None:
    assert RawDistribution(torch.full((1, 3), torch.nan), [entry(1)]).of([None]) == [None]


def test_tokens_that_are_there_already_are_scored_in_rows_of_bounded_number() -> None:
    hidden, head = torch.randn(300, 8), torch.randn(8, 50)
    most = 0

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(rows))
        return rows @ head

    tokens = [token % 50 for token in range(299)]  # nobody knows what follows the last one
    scores = score(logits_of, hidden, Entry(0, 0, [0] * 300, pack_blocks([0]), None, None, 2, tokens))
    expected = (hidden @ head).log_softmax(1)
    assert [said.drawn for said in scores] == pytest.approx([expected[i, t].item() for i, t in enumerate(tokens)])
    assert [said.top[0][0] for said in scores] == expected.argmax(1)[:299].tolist()
    assert {len(said.top) for said in scores} == {2}
    assert most == 128
