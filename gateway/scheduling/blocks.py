"""KV blocks: who owns which, on the device and on the host. Knows no tensors: blocks are numbers."""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from gateway.scheduling.job import Job, Residence
from gateway.scheduling.prefix_cache import CachedBlock, PrefixCache
from gateway.scheduling.queue import JobQueue


class BlockPool:
    """Free blocks of one memory. Last freed, first taken: those are warm in the caches."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def take(self, count: int) -> list[int]:
        assert 0 <= count <= len(self._free), f"{count} blocks wanted, {self!r}"
        split = len(self._free) - count
        taken = self._free[split:]
        del self._free[split:]
        return taken

    def give(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)
        assert len(self._free) <= self.num_blocks, f"more blocks than there are: {self!r}"

    def __repr__(self) -> str:
        return f"{self.num_free}/{self.num_blocks} blocks free"


class DevicePool(BlockPool):
    """A pool whose blocks, when nobody holds them any more, keep their KV until their room is needed: they are free."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.prefixes = PrefixCache()

    @property
    def num_free(self) -> int:
        return len(self._free) + self.prefixes.num_idle

    def take(self, count: int) -> list[int]:
        missing = count - len(self._free)
        if 0 < missing <= self.prefixes.num_idle:
            self.give(self.prefixes.evict(missing))
        return super().take(count)


class BlockLedger:
    """The one place where blocks change hands. Keeps the queue's lines true to the jobs' residence.

    A job in transit owns blocks on both sides until `land_offload` or `land_upload`: a copy may still be reading or
    writing them. A job's first device blocks may be shared, those in `job.prefix`: they never move. An offload copies
    their KV and lets go of them; an upload holds what is still there and brings the rest to blocks of the job's own.
    """

    def __init__(
        self,
        queue: JobQueue,
        num_device_blocks: int,
        num_host_blocks: int,
        block_tokens: int,
        *,
        share_prefixes: bool = True,
    ) -> None:
        self._queue = queue
        self.device = DevicePool(num_device_blocks)
        self.host = BlockPool(num_host_blocks)
        self.block_tokens = block_tokens
        self._share_prefixes = share_prefixes
        self._departing = 0  # blocks that jobs which are leaving have for themselves

    @property
    def departing(self) -> int:
        """Device blocks that become free when offloads land."""
        return self._departing + self.device.prefixes.num_departing

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def missing(self, job: Job) -> int:
        """Free device blocks that all of the job's tokens need, beyond those that it has there or that others hold."""
        there = len(job.device_blocks)
        if not there:
            self.look_up(job)
            there = bisect_left(job.prefix, True, key=lambda cached: not cached.holders)
        return -(-job.context // self.block_tokens) - there

    # ------------------------------------------------------------------------------------------ prefixes

    def look_up(self, job: Job) -> None:
        """Learn what the prefix cache has of a job that has nothing on the device, and holds nothing by that.

        Whole blocks only, and never the last token of a job: something must be computed to get the next one.
        """
        path = job.prefix
        while path and not path[-1].cached:
            path.pop()
        tokens = job.computed if job.residence is Residence.HOST else job.context - 1
        most = tokens // self.block_tokens if self._share_prefixes else 0
        find = self.device.prefixes.find
        while len(path) < most and (known := find(path, self._key(job, len(path)))):
            path.append(known)
        if job.residence is Residence.NOWHERE:
            job.computed = len(path) * self.block_tokens

    def hold(self, job: Job) -> None:
        """Take what was found of a job that will come to the device, so that nobody evicts it."""
        assert not job.device_blocks, f"job {job.id} is there already"
        self.device.prefixes.hold(job.prefix)
        job.device_blocks.extend(cached.block for cached in job.prefix)

    def publish(self, job: Job) -> None:
        """Let others find the blocks that the job has filled. Where they are known already it shares the known ones."""
        prefixes, path, full = self.device.prefixes, job.prefix, job.computed // self.block_tokens
        if len(path) == full or not self._share_prefixes:  # nothing new: so it is in most iterations
            return
        for index in range(len(path), full):
            key, block = self._key(job, index), job.device_blocks[index]
            known = prefixes.find(path, key)
            if known is not None and job.in_flight:
                break  # That plan still reads the job's own; a later commit lets go of it.
            if known is not None:
                prefixes.hold([known])
                self.device.give([block])
                job.device_blocks[index] = known.block
            path.append(known or prefixes.add(path, key, block))

    def _key(self, job: Job, index: int) -> bytes:
        """What the job's block `index` is found by, behind those before it."""
        keys = job.block_keys
        while len(keys) <= index:
            start = len(keys) * self.block_tokens
            tokens = array("I", job.tokens(start, start + self.block_tokens)).tobytes()
            keys.append(tokens if keys else job.cache_salt.encode() + tokens)
        return keys[index]

    # ------------------------------------------------------------------------------------------ moves

    def grow(self, job: Job) -> None:
        """Give the job the device blocks that it is missing. Its KV is on the device, or nowhere."""
        if job.residence is Residence.NOWHERE:
            self._queue.relocate(job, "allocate")
        missing = self.blocks_for(job.context) - len(job.device_blocks)
        if missing:
            job.device_blocks.extend(self.device.take(missing))

    def offload(self, job: Job) -> list[tuple[int, int]]:
        """Start moving the job to the host. Returns (device block, host block) pairs, of the blocks that hold KV."""
        self._queue.relocate(job, "offload")
        job.host_blocks = self.host.take(self.blocks_for(job.computed))
        job.counts.offloaded_blocks += len(job.host_blocks)
        self._departing += len(job.device_blocks) - len(job.prefix)
        self.device.prefixes.depart(job.prefix)
        return list(zip(job.device_blocks, job.host_blocks, strict=False))

    def upload(self, job: Job) -> list[tuple[int, int]]:
        """Start moving the job to the device, but for what it holds there. Returns (host block, device block) pairs."""
        self._queue.relocate(job, "upload")
        moved = job.host_blocks[len(job.device_blocks) :]
        blocks = self.device.take(len(moved))
        job.device_blocks.extend(blocks)
        job.counts.uploaded_blocks += len(moved)
        return list(zip(moved, blocks, strict=True))

    def land_offload(self, job: Job) -> None:
        self._queue.relocate(job, "land")
        self._departing -= len(job.device_blocks) - len(job.prefix)
        self.device.prefixes.leave(job.prefix)
        self._give_own(job)

    def land_upload(self, job: Job) -> None:
        self._queue.relocate(job, "land")
        self._free_host(job)
        self.publish(job)

    def release(self, job: Job) -> None:
        """Free all that the job has; its KV is lost, but for what the prefix cache keeps. Not while it is in flight or
        in transit.
        """
        assert not job.in_flight, f"job {job.id} is in flight"
        self._queue.relocate(job, "release")
        if job.device_blocks:
            self.device.prefixes.let_go(job.prefix)
            self._give_own(job)
        self._free_host(job)
        job.computed = 0

    def _give_own(self, job: Job) -> None:
        self.device.give(job.device_blocks[len(job.prefix) :])
        del job.device_blocks[:]

    def _free_host(self, job: Job) -> None:
        self.host.give(job.host_blocks)
        job.host_blocks = []

    def __repr__(self) -> str:
        return f"device {self.device!r}, host {self.host!r}"


class Vacancy:
    """Counts the device blocks that become free if some jobs leave: a shared one only with its last holder."""

    def __init__(self) -> None:
        self._leaving: Counter[CachedBlock] = Counter()

    def add(self, job: Job) -> int:
        """How many more when `job` leaves, too."""
        freed = len(job.device_blocks) - len(job.prefix)
        for cached in job.prefix:
            if cached.holders == 1:
                freed += 1
            else:
                self._leaving[cached] += 1
                freed += cached.holders == cached.leaving + self._leaving[cached]
        return freed
