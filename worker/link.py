"""How activations get from one stage to the next: an interface, threads of one process, torch.distributed.

The first stage receives nothing, the last one sends nothing. Knows no plans: both sides know how many rows come.
"""

import logging
import queue
import socket
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from common.channel import FIRST_PAUSE_S
from common.records import Setup
from worker.device import gpu_id

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = timedelta(seconds=5)
_AT_ONCE = timedelta(milliseconds=1)


class LinkLost(RuntimeError):
    """A neighbour is gone or too slow. This stage is well and may be set up again with other neighbours."""


class Link(Protocol):
    """One stage's connection with its neighbours in one epoch."""

    def send(self, hidden: Tensor) -> None:
        """Start sending [rows, hidden] to the next stage; nobody may write it any more. Raises LinkLost."""

    def expect(self, rows: int) -> None:
        """Expect [rows, hidden] after all that was expected before: they may arrive while this stage computes."""

    def receive(self, rows: int) -> Tensor:
        """The next [rows, hidden] from the stage before. Raises LinkLost, also when the deadline passes."""
        ...

    def close(self) -> None:
        """Let what was sent leave, then disconnect. Harmless when repeated, or after LinkLost."""


Connect = Callable[[Setup, int], Link]
"""Opens the link of the stage with the given index. Raises LinkLost."""


class LocalLink:
    """A link between threads of one process."""

    def __init__(
        self, before: "queue.SimpleQueue[Tensor] | None", after: "queue.SimpleQueue[Tensor] | None", timeout_s: float
    ) -> None:
        self._before = before
        self._after = after
        self._timeout_s = timeout_s

    def send(self, hidden: Tensor) -> None:
        assert self._after is not None, "the last stage has nobody to send to"
        self._after.put(hidden)

    def expect(self, rows: int) -> None:
        """The queue takes whatever comes."""

    def receive(self, rows: int) -> Tensor:
        assert self._before is not None, "the first stage has nobody to receive from"
        try:
            hidden = self._before.get(timeout=self._timeout_s)
        except queue.Empty:
            raise LinkLost(f"no activations within {self._timeout_s} s") from None
        assert len(hidden) == rows, f"{len(hidden)} rows came, {rows} were due"
        return hidden

    def close(self) -> None:
        pass


class LocalWiring:
    """What the stages of one process connect with: a queue between neighbours, new ones in every epoch."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._queues: dict[tuple[int, int], queue.SimpleQueue[Tensor]] = {}

    def connect(self, setup: Setup, index: int) -> LocalLink:
        before = self._queue(setup.epoch, index) if index > 0 else None
        after = self._queue(setup.epoch, index + 1) if index + 1 < len(setup.stages) else None
        return LocalLink(before, after, self._timeout_s)

    def _queue(self, epoch: int, receiver: int) -> "queue.SimpleQueue[Tensor]":
        return self._queues.setdefault((epoch, receiver), queue.SimpleQueue())  # setdefault is atomic


def host_store(*, only_local: bool) -> TCPStore:
    """Start the store where the stages of every epoch meet, on a free port. One worker's serves them all."""
    listener = socket.create_server(("127.0.0.1" if only_local else "", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


class DistributedLink:
    """A link through torch.distributed: nccl when every stage has a GPU of its own, else gloo over host memory."""

    def __init__(
        self,
        setup: Setup,
        index: int,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        connect_timeout_s: float,
        timeout_s: float,
    ) -> None:
        """Waits `connect_timeout_s` for all stages to come, some of which may be loading; later `timeout_s`."""
        self._index = index
        self._shape = (hidden_size,)
        self._dtype = dtype
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        self._num_stages = len(setup.stages)
        self._sent: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._expected: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._failure: RuntimeError | None = None  # of what was to be expected next
        try:
            self._connect(setup, timedelta(seconds=connect_timeout_s))
        except (RuntimeError, ValueError) as error:  # dist's own errors are RuntimeErrors
            self.close()
            raise LinkLost(f"cannot connect with the other stages: {error}") from error

    def _connect(self, setup: Setup, timeout: timedelta) -> None:
        host = "127.0.0.1" if setup.store_host == socket.gethostname() else setup.store_host
        hosted = TCPStore(host, setup.store_port, is_master=False, timeout=timeout)
        store = PrefixStore(f"epoch {setup.epoch}", hosted)
        self._backend = self._agree(store)
        dist.init_process_group(
            self._backend, store=store, rank=self._index, world_size=self._num_stages, timeout=timeout
        )

    def _agree(self, store: Store) -> str:
        """Tell the others what this stage computes with; the same answer in every stage."""
        store.set(f"stage {self._index}", f"{gpu_id(self._device) or 'cpu'} {self._dtype}")
        answers = [store.get(f"stage {i}").decode().rsplit(" ", 1) for i in range(self._num_stages)]
        names, dtypes = zip(*answers, strict=True)
        if len(set(dtypes)) > 1:
            raise ValueError(f"the stages compute in different types ({', '.join(dtypes)}): give --dtype")
        own_gpus = "cpu" not in names and len(set(names)) == self._num_stages
        return "nccl" if own_gpus else "gloo"

    def send(self, hidden: Tensor) -> None:
        buffer = hidden.contiguous() if self._backend == "nccl" else _to_host(hidden)
        try:
            # At most one plan more is in flight than there are stages: an older send was received long ago.
            while len(self._sent) > self._num_stages + 1:
                self._wait(self._sent.popleft()[0])
            work = dist.isend(buffer, self._index + 1)
        except RuntimeError as error:
            raise LinkLost(f"stage {self._index + 1} cannot be reached: {error}") from error
        self._sent.append((work, buffer))  # The buffer must live until it has left.

    def expect(self, rows: int) -> None:
        # gloo sends only when the receiver has told of its buffer. nccl has streams, where a receipt that waits could
        # hold up what is sent: it is told when the activations are due.
        if self._backend == "gloo" and self._failure is None:
            try:
                self._expected.append(self._post(rows))
            except RuntimeError as error:  # `receive` says so
                self._failure = error

    def receive(self, rows: int) -> Tensor:
        try:
            if not self._expected and self._failure is not None:
                raise self._failure
            work, buffer = self._expected.popleft() if self._expected else self._post(rows)
            self._wait(work)
        except RuntimeError as error:
            raise LinkLost(f"stage {self._index - 1} sends nothing: {error}") from error
        assert len(buffer) == rows, f"{len(buffer)} rows were expected, {rows} are due"
        return buffer.to(self._device, non_blocking=True)

    def _post(self, rows: int) -> tuple[dist.Work | None, Tensor]:
        """Ask for the next [rows, hidden]. Returns what to wait for, and where they will be."""
        direct = self._backend == "nccl" or self._device.type == "cpu"
        buffer = torch.empty(
            rows, *self._shape, dtype=self._dtype, device=self._device if direct else "cpu", pin_memory=not direct
        )
        return dist.irecv(buffer, self._index - 1), buffer

    def _wait(self, work: dist.Work | None) -> None:
        assert work is not None, "this process is not in the group"
        if self._backend == "nccl":
            _wait_for_nccl(work, self._timeout.total_seconds())
        else:
            work.wait(self._timeout)

    def close(self) -> None:
        self._timeout = min(self._timeout, _CLOSE_TIMEOUT)
        try:
            while self._sent:
                self._wait(self._sent.popleft()[0])
        except RuntimeError as error:
            logger.debug("closing with activations under way: %s", error)
        self._sent.clear()
        self._expected.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _wait_for_nccl(work: dist.Work, timeout_s: float) -> None:
    """Its own wait looks once a millisecond where it has a timeout: as long as a stage takes. Raises RuntimeError."""
    deadline = time.monotonic() + timeout_s
    while not work.is_completed():
        if time.monotonic() >= deadline:
            work.wait(_AT_ONCE)  # gives up what nobody waits for any more, which would keep the GPU busy, and raises
        time.sleep(FIRST_PAUSE_S)
    work.wait()  # raises what went wrong


def _to_host(hidden: Tensor) -> Tensor:
    if hidden.device.type == "cpu":
        return hidden.contiguous()
    return torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True).copy_(hidden)
