import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from fakes_worker import DEVICES, make_cache

from worker.copier import Copier, Copies, ThreadCopies, open_copier, runs
from worker.kv_cache import KvCache


@pytest.fixture(params=DEVICES)
def cache(request: pytest.FixtureRequest) -> KvCache:
    """Every device block holds its own number, every host block 100 plus its own."""
    cache = make_cache(request.param, blocks=8, host_blocks=8)
    for block in range(8):
        cache.device[block] = block
        cache.host[block] = 100 + block
    return cache


@pytest.fixture
def copier(cache: KvCache) -> Iterator[Copier]:
    copier = open_copier(cache)
    yield copier
    copier.close()


def numbers(pool: torch.Tensor) -> list[int]:
    assert all(len(block.unique()) == 1 for block in pool), "a block was copied in part"
    return [int(block.flatten()[0]) for block in pool.cpu()]


def finish(copies: Copies) -> None:
    copies.wait(10.0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def test_offloads_and_uploads_move_whole_blocks(cache: KvCache, copier: Copier) -> None:
    finish(copier.start([(1, 5), (2, 6), (7, 0)], [(3, 4), (4, 5)]))
    assert numbers(cache.host) == [7, 101, 102, 103, 104, 1, 2, 107]
    assert numbers(cache.device) == [0, 1, 2, 3, 103, 104, 6, 7]


def test_an_upload_sees_what_the_same_plan_offloaded(cache: KvCache, copier: Copier) -> None:
    finish(copier.start([(1, 5)], [(5, 2)]))
    assert numbers(cache.device)[2] == 1


def test_plans_are_copied_in_the_order_they_were_started(cache: KvCache, copier: Copier) -> None:
    copier.start([(1, 5)], [])
    copier.start([], [(5, 1), (0, 2)])
    finish(copier.start([(2, 6), (1, 7)], []))
    assert numbers(cache.host)[5:] == [1, 100, 1]


def test_neighbouring_copies_are_joined() -> None:
    assert list(runs([(4, 8), (1, 5), (2, 6), (3, 3), (5, 9)])) == [(1, 5, 2), (3, 3, 1), (4, 8, 2)]
    assert list(runs([])) == []


def test_a_plan_without_copies_stalls_nobody(copier: Copier) -> None:
    copies = copier.start([], [])
    copies.wait(0.0)
    assert copies.stalled_s() == 0.0


def test_the_time_spent_waiting_is_counted() -> None:
    future: Future[None] = Future()
    timer = threading.Timer(0.05, future.set_result, [None])
    timer.start()
    copies = ThreadCopies(future)
    copies.wait(10.0)
    assert 0.02 < copies.stalled_s() < 10.0
    timer.join()


def test_copies_that_never_end_raise_at_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        ThreadCopies(Future()).wait(0.01)


def test_a_failed_copy_raises_where_it_is_waited_for() -> None:
    copier = open_copier(make_cache(blocks=2, host_blocks=0))
    copies = copier.start([(1, 3)], [])
    with pytest.raises(AssertionError, match="no block 3 to copy to"):
        copies.wait(10.0)
    copier.close()
