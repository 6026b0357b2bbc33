"""Moves KV blocks between device and host beside compute. Which, and when that is safe, the scheduler has decided."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from worker.kv_cache import KvCache

Pairs = list[tuple[int, int]]
Bytes = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Pool = TypeVar("Pool", Tensor, Bytes)


class Copies(Protocol):
    """The copies of one plan, under way."""

    def wait(self, timeout_s: float) -> None:
        """Let nothing that this thread computes from here on overtake the copies. Raises TimeoutError."""

    def stalled_s(self) -> float:
        """Seconds that compute stood still in `wait`. Asked after the iteration, when its answer is known."""
        ...


class Copier(Protocol):
    """Starts copies in the order of the calls; within one call offloads come before uploads."""

    def start(self, offloads: Pairs, uploads: Pairs) -> Copies:
        """Start copying blocks: offloads (device, host), uploads (host, device). Returns at once."""
        ...

    def close(self) -> None:
        """Finish what was started."""


def open_copier(cache: KvCache) -> Copier:
    """The copier for the device that `cache` lives on."""
    return StreamCopier(cache) if cache.torch_device.type == "cuda" else ThreadCopier(cache)


def runs(pairs: Pairs) -> Iterator[tuple[int, int, int]]:
    """Join neighbouring copies: (from, to, blocks), so that one large copy replaces many small ones."""
    first, target, count = 0, 0, 0
    for source, destination in sorted(pairs):
        if count and source == first + count and destination == target + count:
            count += 1
            continue
        if count:
            yield first, target, count
        first, target, count = source, destination, 1
    if count:
        yield first, target, count


def _regions(target: Pool, source: Pool, pairs: Pairs) -> Iterator[tuple[Pool, Pool]]:
    """The memory that each joined copy writes and reads."""
    for first, to, count in runs(pairs):
        assert first + count <= len(source), f"no block {first + count - 1} to copy from"
        assert to + count <= len(target), f"no block {to + count - 1} to copy to"
        yield target[to : to + count], source[first : first + count]


class ThreadCopier:
    """Copies in a thread of its own: numpy's memcpy lets go of the GIL and, unlike torch's, stays on one core."""

    def __init__(self, cache: KvCache) -> None:
        self._device = _as_bytes(cache.device)
        self._host = _as_bytes(cache.host)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-copier")

    def start(self, offloads: Pairs, uploads: Pairs) -> "ThreadCopies":
        if not offloads and not uploads:
            return ThreadCopies(None)
        return ThreadCopies(self._thread.submit(self._copy, offloads, uploads))

    def close(self) -> None:
        self._thread.shutdown()

    def _copy(self, offloads: Pairs, uploads: Pairs) -> None:
        for target, source in _regions(self._host, self._device, offloads):
            target[:] = source
        for target, source in _regions(self._device, self._host, uploads):
            target[:] = source


class ThreadCopies:
    """Copies that a thread makes."""

    def __init__(self, future: "Future[None] | None") -> None:
        self._future = future
        self._stalled_s = 0.0

    def wait(self, timeout_s: float) -> None:
        if self._future is None:
            return
        begun = time.perf_counter()
        self._future.result(timeout_s)
        self._stalled_s += time.perf_counter() - begun

    def stalled_s(self) -> float:
        return self._stalled_s


class StreamCopier:
    """Copies on a CUDA stream of its own, from and to pinned memory; compute waits on the device, the host never.

    A whole block is one contiguous copy of all layers, so gathering blocks in a staging buffer would only add a pass.
    """

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._stream = torch.cuda.Stream(cache.torch_device)  # type: ignore[no-untyped-call]
        # The pool may still be being zeroed. From here on plans order copies and compute: what a plan offloads was
        # written by iterations whose results were known when it was made.
        self._stream.wait_stream(torch.cuda.current_stream(cache.torch_device))

    def start(self, offloads: Pairs, uploads: Pairs) -> "StreamCopies":
        if not offloads and not uploads:
            return StreamCopies(None)
        done = _event()
        with torch.cuda.stream(self._stream):
            for target, source in _regions(self._cache.host, self._cache.device, offloads):
                target.copy_(source, non_blocking=True)
            for target, source in _regions(self._cache.device, self._cache.host, uploads):
                target.copy_(source, non_blocking=True)
            done.record()  # After the copies were enqueued: an event marks what came before it.
        return StreamCopies(done)

    def close(self) -> None:
        self._stream.synchronize()


class StreamCopies:
    """Copies that a CUDA stream makes."""

    def __init__(self, done: torch.cuda.Event | None) -> None:
        self._done = done
        self._stalls: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def wait(self, timeout_s: float) -> None:
        if self._done is None:
            return
        before, after = _event(), _event()
        before.record()
        self._done.wait()  # The current stream waits; the host goes on.
        after.record()
        self._stalls.append((before, after))

    def stalled_s(self) -> float:
        for _, after in self._stalls:
            after.synchronize()
        return float(sum(before.elapsed_time(after) for before, after in self._stalls)) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _as_bytes(pool: Tensor) -> Bytes:
    """A pool as rows of bytes, one per block: numpy has no bfloat16."""
    return pool.flatten(1).view(torch.uint8).numpy()
