import pytest
import torch
from fakes_worker import SPEC, FakeJob, FakeStage, greedy_tokens, make_cache

from common.records import Plan
from common.topology import partition
from worker.epoch import Epoch
from worker.kv_cache import KvCache
from worker.link import LocalLink
from worker.runner import Runner


def open_epoch(cache: KvCache) -> Epoch:
    (stage,) = partition(SPEC, 1)
    link = LocalLink(None, None, 0.1)
    runner = Runner(
        FakeStage(SPEC, stage),
        stage,
        cache,
        link,
        hidden_size=SPEC.hidden_size,
        dtype=torch.float32,
        timeout_s=10.0,
    )
    return Epoch(4, runner, cache, link)


def test_copies_start_when_a_plan_is_taken_however_many_wait_before_it() -> None:
    cache = make_cache()
    cache.device[3] = 7.0
    epoch = open_epoch(cache)
    epoch.take(Plan(0, 4, [FakeJob(0, [5], [0]).entry()], [], [], False))
    epoch.take(Plan(1, 4, [], [(3, 2)], [], False))
    assert repr(epoch) == "<Epoch 4: 2 plans waiting>"
    epoch.close()  # finishes copies, runs nothing
    assert (cache.host[2] == 7.0).all()


def test_activations_are_expected_when_a_plan_is_taken() -> None:
    expected: list[int] = []

    class Listening(LocalLink):
        def expect(self, rows: int) -> None:
            expected.append(rows)

    cache, last = make_cache(), partition(SPEC, 2)[1]
    link = Listening(None, None, 0.1)
    sizes = {"hidden_size": SPEC.hidden_size, "dtype": torch.float32}
    epoch = Epoch(4, Runner(FakeStage(SPEC, last), last, cache, link, timeout_s=10.0, **sizes), cache, link)
    epoch.take(Plan(0, 4, [FakeJob(0, [5, 6, 7], [0]).entry(), FakeJob(1, [5], [1]).entry()], [], [], False))
    epoch.take(Plan(1, 4, [], [(3, 2)], [], False))
    assert expected == [4, 1]
    epoch.close()


def test_plans_run_in_the_order_they_were_taken() -> None:
    epoch = open_epoch(make_cache())
    for seq in (8, 9):
        epoch.take(Plan(seq, 4, [FakeJob(seq, [seq], [seq]).entry()], [], [], False))
    for seq in (8, 9):
        result = epoch.advance()
        assert result is not None
        assert (result.seq, result.tokens) == (seq, greedy_tokens([seq], 1))
    assert not epoch.has_work
    epoch.close()


def test_a_plan_of_another_epoch_is_our_mistake() -> None:
    epoch = open_epoch(make_cache())
    with pytest.raises(AssertionError, match="plan 0 of epoch 3 in <Epoch 4"):
        epoch.take(Plan(0, 3, [], [], [], False))
    epoch.close()
