"""KV blocks: who owns which, on the device and on the host. Knows no tensors: blocks are numbers."""

from gateway.scheduling.job import Job
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
        return self.num_blocks - len(self._free)

    def take(self, count: int) -> list[int]:
        assert 0 <= count <= len(self._free), f"{count} blocks wanted, {self!r}"
        split = len(self._free) - count
        taken = self._free[split:]
        del self._free[split:]
        return taken

    def give(self, blocks: list[int]) -> None:
        self._free.extend(blocks)
        assert len(self._free) <= self.num_blocks, f"more blocks than there are: {self!r}"

    def __repr__(self) -> str:
        return f"{self.num_free}/{self.num_blocks} blocks free"


class BlockLedger:
    """The one place where blocks change hands. Keeps the queue's lines true to the jobs' residence.

    A job in transit owns blocks on both sides until `land`: a copy may still be reading or writing them.
    """

    def __init__(self, queue: JobQueue, num_device_blocks: int, num_host_blocks: int, block_tokens: int) -> None:
        self._queue = queue
        self.device = BlockPool(num_device_blocks)
        self.host = BlockPool(num_host_blocks)
        self.block_tokens = block_tokens
        self.departing = 0  # device blocks that become free when offloads land

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def missing(self, job: Job) -> int:
        """Device blocks that the job's next iteration needs beyond those that it has there."""
        return self.blocks_for(job.context) - len(job.device_blocks)

    def grow(self, job: Job) -> None:
        """Give the job the device blocks of its next iteration. Its KV is on the device, or nowhere."""
        if not job.device_blocks:
            self._queue.relocate(job, "allocate")
        job.device_blocks += self.device.take(self.missing(job))

    def offload(self, job: Job) -> list[tuple[int, int]]:
        """Start moving the job to the host. Returns (device block, host block) pairs, of the blocks that hold KV."""
        self._queue.relocate(job, "offload")
        job.host_blocks = self.host.take(self.blocks_for(job.computed))
        job.counts.offloaded_blocks += len(job.host_blocks)
        self.departing += len(job.device_blocks)
        return list(zip(job.device_blocks, job.host_blocks, strict=False))

    def upload(self, job: Job) -> list[tuple[int, int]]:
        """Start moving the job to the device. Returns (host block, device block) pairs."""
        self._queue.relocate(job, "upload")
        job.device_blocks = self.device.take(len(job.host_blocks))
        job.counts.uploaded_blocks += len(job.host_blocks)
        return list(zip(job.host_blocks, job.device_blocks, strict=True))

    def land_offload(self, job: Job) -> None:
        self._queue.relocate(job, "land")
        self.departing -= len(job.device_blocks)
        self._free_device(job)

    def land_upload(self, job: Job) -> None:
        self._queue.relocate(job, "land")
        self._free_host(job)

    def release(self, job: Job) -> None:
        """Free all that the job has; its KV is lost. Not while it is in flight or in transit."""
        assert not job.in_flight, f"job {job.id} is in flight"
        self._queue.relocate(job, "release")
        self._free_device(job)
        self._free_host(job)
        job.computed = 0

    def _free_device(self, job: Job) -> None:
        self.device.give(job.device_blocks)
        job.device_blocks = []

    def _free_host(self, job: Job) -> None:
        self.host.give(job.host_blocks)
        job.host_blocks = []

    def __repr__(self) -> str:
        return f"device {self.device!r}, host {self.host!r}"
