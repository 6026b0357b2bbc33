"""The only place that imports mpi4py. A world joined at start-up, and the channel over it.

Point-to-point messages on COMM_WORLD only: no collective and no new communicator after `World.join`. One thread of a
process calls MPI after that, whichever it is; only `World.abort` asks nobody.
"""

import os
import threading
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import mpi4py

from common.channel import BUSY_PAUSE_S, FIRST_PAUSE_S, ChannelError

mpi4py.rc.initialize = False  # joining a world is an act, not a side effect of an import
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402

_TAG = 1
_ABORT_S = 5.0
MAX_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class World:
    """This rank's place in the world, and what every rank said of itself when it joined."""

    rank: int
    size: int
    notes: list[bytes]  # by rank
    library: str  # such as "MPICH 5.0.2"

    @classmethod
    def join(cls, note: bytes) -> "World":
        """Initialize MPI and exchange notes. Collective: every rank calls it once, first thing."""
        level = MPI.Init_thread(MPI.THREAD_SERIALIZED)
        if level < MPI.THREAD_SERIALIZED:
            raise ChannelError("this MPI library has no MPI_THREAD_SERIALIZED, which the gateway's engine thread needs")
        comm = MPI.COMM_WORLD
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        notes = _allgather(comm, note)
        vendor, version = MPI.get_vendor()
        return cls(comm.Get_rank(), comm.Get_size(), notes, f"{vendor} {'.'.join(map(str, version))}")

    def leave(self, status: int = 0, timeout_s: float | None = None) -> None:
        """Finalize MPI. Collective: every rank calls it last. What was sent and never taken in is dropped.

        When others have not come within `timeout_s`, all ranks are ended at once, with `status`.
        """
        if MPI.Is_finalized():
            return
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        # MPICH fails to finalize a world with such messages: results of plans that were in flight when it was stopped.
        everybody_is_here = MPI.COMM_WORLD.Ibarrier()
        while not everybody_is_here.Test():
            _drop_messages(MPI.COMM_WORLD)
            time.sleep(BUSY_PAUSE_S)
            if deadline is not None and time.monotonic() > deadline:
                MPI.COMM_WORLD.Abort(status)
        _drop_messages(MPI.COMM_WORLD)
        MPI.Finalize()

    def abort(self, status: int) -> NoReturn:
        """End all ranks at once with `status`, whatever threads of this one are within MPI."""
        # Another thread, as MPI may never come back; then this rank ends, and the launcher ends those on its host.
        threading.Thread(target=MPI.COMM_WORLD.Abort, args=(status,), daemon=True).start()
        time.sleep(_ABORT_S)
        os._exit(status)


class MpiChannel:
    """A `common.channel.Channel` over COMM_WORLD."""

    def __init__(self, world: World) -> None:
        self.rank = world.rank
        self.size = world.size
        self._comm = MPI.COMM_WORLD
        self._status = MPI.Status()
        self._sending: list[tuple[Any, bytes]] = []  # a payload must outlive its request

    def send(self, peers: Iterable[int], payload: bytes) -> None:
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ChannelError(f"message of {len(payload)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        for peer in peers:
            self._sending.append((self._comm.Isend([payload, MPI.BYTE], dest=peer, tag=_TAG), payload))

    def poll(self) -> tuple[int, bytes] | None:
        if self._sending:
            self._forget_sent()
        if not _is_there(self._comm, self._status):
            return None
        source, count = self._status.Get_source(), self._status.Get_count(MPI.BYTE)
        if not 0 <= count <= MAX_MESSAGE_BYTES:
            raise ChannelError(f"message of {count} bytes from rank {source} is over the limit")
        buffer = bytearray(count)
        self._comm.Recv([buffer, MPI.BYTE], source=source, tag=_TAG)
        return source, bytes(buffer)

    def close(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._forget_sent():
            if time.monotonic() > deadline:
                return False
            time.sleep(FIRST_PAUSE_S)
        return True

    def _forget_sent(self) -> bool:
        """Let go of what has left; True while something has not."""
        self._sending = [(request, payload) for request, payload in self._sending if not request.Test()]
        return bool(self._sending)


def _is_there(comm: Any, status: Any) -> bool:
    """Whether a message is; `status` tells which.

    MPICH's first look only takes in what has arrived, the second one sees it. With one, every message would be noticed
    a whole pause late.
    """
    look = comm.Iprobe
    return bool(look(MPI.ANY_SOURCE, _TAG, status) or look(MPI.ANY_SOURCE, _TAG, status))


def _drop_messages(comm: Any) -> None:
    status = MPI.Status()
    while _is_there(comm, status):
        comm.Recv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE], source=status.Get_source(), tag=_TAG)


def _allgather(comm: Any, note: bytes) -> list[bytes]:
    """Every rank's bytes, without pickling: lengths first, then buffers of the greatest length."""
    lengths = array("q", [0]) * comm.Get_size()
    comm.Allgather([array("q", [len(note)]), MPI.INT64_T], [lengths, MPI.INT64_T])
    width = max(lengths)
    everyone = bytearray(width * comm.Get_size())
    comm.Allgather([note.ljust(width, b"\0"), MPI.BYTE], [everyone, MPI.BYTE])
    return [bytes(everyone[i * width : i * width + length]) for i, length in enumerate(lengths)]
