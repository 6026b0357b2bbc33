import pytest

from common.channel import BUSY_PAUSE_S, FIRST_PAUSE_S, IDLE_PAUSE_S, LocalChannel, growing_pauses, receive


class Clock:
    """Time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_a_message_reaches_every_peer_and_names_its_sender() -> None:
    ranks = LocalChannel.world(3)
    ranks[1].send([0, 2], b"hello")
    assert [rank.poll() for rank in ranks] == [(1, b"hello"), None, (1, b"hello")]


def test_messages_of_one_sender_stay_in_order() -> None:
    gateway, worker = LocalChannel.world(2)
    for payload in (b"1", b"2", b"3"):
        gateway.send([1], payload)
    assert [worker.poll() for _ in range(4)] == [(0, b"1"), (0, b"2"), (0, b"3"), None]


def test_every_rank_knows_its_place_in_the_world() -> None:
    assert [(rank.rank, rank.size) for rank in LocalChannel.world(3)] == [(0, 3), (1, 3), (2, 3)]


def test_what_is_there_already_is_received_without_a_pause() -> None:
    gateway, worker = LocalChannel.world(2)
    gateway.send([1], b"now")
    clock = Clock()
    assert receive(worker, 1.0, clock=clock, pause=clock.pause) == (0, b"now")
    assert clock.pauses == []


def test_a_message_that_comes_while_waiting_is_received() -> None:
    gateway, worker = LocalChannel.world(2)
    clock = Clock()

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        if len(clock.pauses) == 3:
            gateway.send([1], b"late")

    assert receive(worker, 1.0, clock=clock, pause=pause) == (0, b"late")
    assert len(clock.pauses) == 3


def test_waiting_ends_exactly_at_the_deadline() -> None:
    _, worker = LocalChannel.world(2)
    clock = Clock()
    assert receive(worker, 0.5, clock=clock, pause=clock.pause) is None
    assert abs(clock.now - 0.5) < 1e-9


def test_a_timeout_of_zero_looks_once() -> None:
    gateway, worker = LocalChannel.world(2)
    clock = Clock()
    assert receive(worker, 0.0, clock=clock, pause=clock.pause) is None
    gateway.send([1], b"there")
    assert receive(worker, 0.0, clock=clock, pause=clock.pause) == (0, b"there")
    assert clock.pauses == []


def test_pauses_grow_from_short_ones_to_the_longest() -> None:
    _, worker = LocalChannel.world(2)
    for longest_pause_s in (BUSY_PAUSE_S, IDLE_PAUSE_S):
        clock = Clock()
        receive(worker, 1.0, growing_pauses(longest_pause_s), clock=clock, pause=clock.pause)
        assert clock.pauses[0] == FIRST_PAUSE_S
        assert clock.pauses[:-1] == sorted(clock.pauses[:-1])  # the last one ends at the deadline
        assert max(clock.pauses) == longest_pause_s


def test_who_knows_when_an_answer_is_due_says_when_to_look() -> None:
    _, worker = LocalChannel.world(2)
    clock = Clock()
    receive(worker, 1.0, iter([0.9, 0.03, 0.04, 0.05]), clock=clock, pause=clock.pause)
    assert clock.pauses == pytest.approx([0.9, 0.03, 0.04, 0.03])  # the last one ends at the deadline
