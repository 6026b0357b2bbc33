"""How messages travel between ranks: an interface, its in-process form, polite waiting. MPI is in `mpi.py`."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

# A blocking MPI wait burns a core, so everybody polls, with a pause that grows while nothing comes.
FIRST_PAUSE_S = 50e-6
BUSY_PAUSE_S = 1e-3
IDLE_PAUSE_S = 5e-3


class ChannelError(RuntimeError):
    """A message that could not be sent or taken in."""


class Channel(Protocol):
    """One rank's end. Payloads are encoded records; one thread uses it."""

    rank: int
    size: int

    def send(self, peers: Iterable[int], payload: bytes) -> None:
        """Start sending `payload` to every rank in `peers`; returns at once. Raises ChannelError if it is too large."""

    def poll(self) -> tuple[int, bytes] | None:
        """The next message as (sender, payload), or None when none has arrived."""

    def close(self, timeout_s: float) -> bool:
        """Wait until what was sent has left; False when it had not after `timeout_s`."""


class LocalChannel:
    """Ranks that are threads of one process; for tests and small tools. Same bytes as over MPI."""

    def __init__(self, rank: int, inboxes: list[deque[tuple[int, bytes]]]) -> None:
        self.rank = rank
        self.size = len(inboxes)
        self._inboxes = inboxes

    @classmethod
    def world(cls, size: int) -> "list[LocalChannel]":
        inboxes: list[deque[tuple[int, bytes]]] = [deque() for _ in range(size)]
        return [cls(rank, inboxes) for rank in range(size)]

    def send(self, peers: Iterable[int], payload: bytes) -> None:
        for peer in peers:
            self._inboxes[peer].append((self.rank, payload))

    def poll(self) -> tuple[int, bytes] | None:
        inbox = self._inboxes[self.rank]
        return inbox.popleft() if inbox else None

    def close(self, timeout_s: float) -> bool:
        return True


def growing_pauses(longest_s: float = BUSY_PAUSE_S) -> Iterator[float]:
    """Between looks for what may come at any time: seconds, from short ones on, up to 0.5 % of the whole wait."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.005, longest_s)


def receive(
    channel: Channel,
    timeout_s: float,
    pauses: Iterator[float] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[int, bytes] | None:
    """The next message, or None after `timeout_s`. Yields the core for `pauses`, by default growing ones."""
    deadline = clock() + timeout_s
    pauses = pauses or growing_pauses()
    while (message := channel.poll()) is None:
        left_s = deadline - clock()
        if left_s <= 0:
            return None
        pause(min(next(pauses), left_s))
    return message
