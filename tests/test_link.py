import multiprocessing
import socket
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from common.records import Setup
from worker.link import DistributedLink, LinkLost, LocalWiring, _wait_for_nccl, host_store

HIDDEN = 8
TIMEOUT_S = 20.0


def setup(num_stages: int, port: int, epoch: int = 1) -> Setup:
    return Setup(epoch, list(range(1, num_stages + 1)), 1, 0, socket.gethostname(), port)


def open_link(
    setup: Setup,
    index: int,
    *,
    timeout_s: float = TIMEOUT_S,
    connect_timeout_s: float = TIMEOUT_S,
    dtype: torch.dtype = torch.float32,
) -> DistributedLink:
    cpu = torch.device("cpu")
    return DistributedLink(
        setup,
        index,
        hidden_size=HIDDEN,
        dtype=dtype,
        device=cpu,
        connect_timeout_s=connect_timeout_s,
        timeout_s=timeout_s,
    )


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count)).to(dtype)


def test_local_links_carry_activations_in_order() -> None:
    wiring = LocalWiring()
    first, middle, last = (wiring.connect(setup(3, 0), i) for i in range(3))
    first.send(rows(3))
    first.send(rows(1))
    middle.send(middle.receive(3) * 2)
    middle.send(middle.receive(1) * 2)
    assert torch.equal(last.receive(3), rows(3) * 2)
    assert torch.equal(last.receive(1), rows(1) * 2)


def test_a_new_epoch_starts_with_empty_links() -> None:
    wiring = LocalWiring(timeout_s=0.01)
    wiring.connect(setup(2, 0, epoch=1), 0).send(rows(1))
    with pytest.raises(LinkLost, match="no activations"):
        wiring.connect(setup(2, 0, epoch=2), 1).receive(1)


class Work:
    """What nccl gives for a receipt; it completes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.waits: list[timedelta | None] = []

    def is_completed(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def wait(self, timeout: timedelta | None = None) -> None:
        self.waits.append(timeout)
        if self.looks >= 0:
            raise RuntimeError("timed out")


def test_nccl_is_asked_to_wait_only_for_what_is_there() -> None:
    work = Work(looks=3)
    _wait_for_nccl(work, TIMEOUT_S)
    assert (work.looks, work.waits) == (-1, [None])


def test_what_nccl_does_not_bring_within_the_deadline_is_given_up() -> None:
    work = Work(looks=10**9)
    with pytest.raises(RuntimeError, match="timed out"):
        _wait_for_nccl(work, 0.0)
    assert work.waits == [timedelta(milliseconds=1)]


# Each runs in a process of its own, as torch.distributed has one group per process. What it returns is compared.


def relay(index: int, port: int) -> list[bool]:
    """Three stages; the first is never waited for."""
    link = open_link(setup(3, port), index, dtype=torch.bfloat16)
    arrived = []
    for count in (1, 5, 300, 2, 1, 1, 1):
        expected = rows(count, torch.bfloat16)
        if index > 0:
            arrived.append(torch.equal(link.receive(count), expected))
        if index < 2:
            link.send(expected)
    link.close()
    return arrived


def come_early(index: int, port: int) -> list[bool]:
    """All is expected and has left before anything is received; what is expected last never comes."""
    link = open_link(setup(2, port), index)
    store = TCPStore("127.0.0.1", port, is_master=False)
    counts, arrived = (3, 300, 1, 2), []
    if index == 0:
        for count in counts:
            link.send(rows(count))
        for work, _ in link._sent:
            assert work is not None
            work.wait(timedelta(seconds=TIMEOUT_S))
        store.set("sent", "yes")
    else:
        for count in (*counts, 5):
            link.expect(count)
        store.wait(["sent"], timedelta(seconds=TIMEOUT_S))
        arrived = [torch.equal(link.receive(count), rows(count)) for count in counts]
    link.close()
    return arrived


def move_to_next_epoch(index: int, port: int) -> list[bool]:
    """Stage 0 leaves with a message under way; the same processes meet again and trade places."""
    link = open_link(setup(2, port, epoch=1), index)
    if index == 0:
        link.send(rows(2))
    else:
        link.receive(2)
    link.close()
    link = open_link(setup(2, port, epoch=2), 1 - index)
    if index == 1:
        link.send(rows(4))
        arrived = []
    else:
        arrived = [torch.equal(link.receive(4), rows(4))]
    link.close()
    return arrived


def lose_a_neighbour(index: int, port: int) -> str:
    """The middle one of three vanishes."""
    link = open_link(setup(3, port), index)
    if index == 1:
        return "gone"
    try:
        if index == 2:
            for _ in range(3):
                link.expect(1)
            link.receive(1)
        for _ in range(10):
            link.send(rows(1))
    except LinkLost:
        link.close()
        return "lost"
    return "noticed nothing"


def be_silent(index: int, port: int) -> str:
    """The first stage lives but sends nothing until the other has given up."""
    link = open_link(setup(2, port), index, timeout_s=0.2)
    given_up = TCPStore("127.0.0.1", port, is_master=False)
    if index == 0:
        given_up.wait(["given up"], timedelta(seconds=TIMEOUT_S))
        return "silent"
    try:
        link.receive(1)
    except LinkLost:
        given_up.set("given up", "yes")
        return "lost"
    return "received"


def disagree(index: int, port: int) -> str:
    try:
        open_link(setup(2, port), index, dtype=[torch.float32, torch.bfloat16][index])
    except LinkLost as error:
        return str(error)
    return "connected"


def run_in_process(part: Callable[[int, int], Any], index: int, port: int, answers: "Queue[Any]") -> None:
    torch.set_num_threads(1)
    answers.put((index, part(index, port)))


def play(part: Callable[[int, int], Any], num_stages: int) -> list[Any]:
    """What `part` returns in each of `num_stages` processes."""
    store = host_store(only_local=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.link"])  # importing torch in every process takes most of the time
    answers = context.Queue()
    processes = [
        context.Process(target=run_in_process, args=(part, i, store.port, answers), daemon=True)
        for i in range(num_stages)
    ]
    for process in processes:
        process.start()
    try:
        return [answer for _, answer in sorted(answers.get(timeout=60) for _ in processes)]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def test_activations_pass_through_three_processes_in_order() -> None:
    assert play(relay, 3) == [[], [True] * 7, [True] * 7]


def test_activations_that_are_expected_come_early_and_in_order() -> None:
    assert play(come_early, 2) == [[], [True] * 4]


def test_the_same_processes_can_meet_again_in_another_order() -> None:
    assert play(move_to_next_epoch, 2) == [[True], []]


def test_the_neighbours_of_a_lost_stage_notice() -> None:
    assert play(lose_a_neighbour, 3) == ["lost", "gone", "lost"]


def test_a_silent_neighbour_counts_as_lost_at_the_deadline() -> None:
    assert play(be_silent, 2) == ["silent", "lost"]


def test_stages_that_compute_in_different_types_say_so() -> None:
    answers = play(disagree, 2)
    assert all("torch.float32, torch.bfloat16" in answer and "--dtype" in answer for answer in answers)


def test_a_store_that_is_not_there_is_a_lost_link() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(LinkLost, match="cannot connect"):
            open_link(setup(2, unused.getsockname()[1]), 0, connect_timeout_s=0.5)
