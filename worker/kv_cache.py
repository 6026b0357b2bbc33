"""Where keys and values live: a pool of blocks on the device, one in host memory. Whose they are, others decide."""

import mmap
import weakref
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model_spec import ModelSpec

_SCALE_BYTES = 4  # of a key or value in int8


def block_bytes(spec: ModelSpec, num_layers: int, block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block in a stage of `num_layers` layers."""
    numbers = spec.kv_bytes_per_token(num_layers, dtype.itemsize) * block_tokens
    return numbers // spec.head_dim * _slot_numbers(spec.head_dim, dtype)


def _slot_numbers(head_dim: int, dtype: torch.dtype) -> int:
    """What a head's key or value takes in a pool: in int8 it has a scale."""
    return head_dim + _SCALE_BYTES if dtype == torch.int8 else head_dim


class KvCache:
    """Two pools of blocks: [blocks, layers, 2 (keys, values), kv_heads, block_tokens, head_dim], in int8 with scales.

    Block-major, so that a copy between device and host moves one contiguous region per block. Heads before slots, so
    that gathered blocks of one job are, per head, one contiguous [slots, head_dim] matrix: what a matmul wants. (In
    bf16 on a CPU the native kernel orders a head's numbers in a block as it needs them, and in int8, which only it
    reads and writes, their scales behind them: native/kv_tiles.h.)
    Fresh memory is zero and `write` lets no NaN in, because attention multiplies what lies behind a job's last
    token by zero instead of skipping it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_layers: int,
        block_tokens: int,
        num_device_blocks: int,
        num_host_blocks: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert num_device_blocks > 0, "a stage needs device blocks"
        self.num_layers = num_layers
        self.block_tokens = block_tokens
        self.kv_heads = spec.num_kv_heads
        self.head_dim = spec.head_dim
        self.dtype = dtype
        self.torch_device = device
        slot_numbers = _slot_numbers(self.head_dim, dtype)
        block_shape = (num_layers, 2, self.kv_heads, block_tokens, slot_numbers)
        if device.type == "cuda":
            self.device = torch.zeros(num_device_blocks, *block_shape, dtype=dtype, device=device)
        else:
            self.device = _lazy_zeros((num_device_blocks, *block_shape), dtype)
        self.host = _lazy_zeros((num_host_blocks, *block_shape), dtype)
        if device.type == "cuda" and num_host_blocks:
            _pin(self.host, self)
        self._slot_rows = self.device.view(-1, slot_numbers)
        self._block_rows = self.device.view(-1, block_tokens * slot_numbers)

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Blocks on the device and in host memory."""
        return len(self.device), len(self.host)

    def write_index(self, slots: Tensor) -> Tensor:
        """Where `write` puts tokens: [2 * tokens * kv_heads]. slots: [tokens], block * block_tokens + offset."""
        block_rows = self._block_index(slots // self.block_tokens)  # [2, tokens, kv_heads]
        return (block_rows * self.block_tokens + (slots % self.block_tokens)[:, None]).flatten()

    def write(self, layer: int, index: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, [tokens, kv_heads, head_dim], at `write_index(slots)`; what is not finite becomes 0.

        Returns both as they are stored, [2, tokens, kv_heads, head_dim]: in the cache's type, whose largest number
        stands for those that are larger.
        """
        rows = torch.stack((k, v)).nan_to_num_(0.0, 0.0, 0.0)
        if rows.dtype != self.dtype:
            largest = torch.finfo(self.dtype).max
            rows = rows.clamp_(-largest, largest).to(self.dtype)
        first = layer * 2 * self.kv_heads * self.block_tokens
        self._slot_rows[first:].index_copy_(0, index, rows.view(-1, self.head_dim))
        return rows

    def gather(self, tables: Tensor, memory: Tensor) -> "Gather":
        """Prepare to read `tables`, [jobs, blocks], into `memory`, flat and of `gather_size(tables)` numbers."""
        index = self._block_index(tables).transpose(2, 3).flatten()  # [2 * jobs * kv_heads * blocks]
        target = memory.view(len(index), -1)
        keys, values = memory.view(2, len(tables), self.kv_heads, -1, self.head_dim).unbind(0)
        return Gather(self._block_rows, 2 * self.kv_heads, index, target, keys, values)

    def gather_size(self, tables: Tensor) -> int:
        """Numbers that one layer of the blocks of `tables` has."""
        return tables.numel() * 2 * self.kv_heads * self.block_tokens * self.head_dim

    def _block_index(self, blocks: Tensor) -> Tensor:
        """Rows of [block_tokens, head_dim] in layer 0: [2, *blocks.shape, kv_heads]."""
        heads = torch.arange(2 * self.kv_heads, device=blocks.device).view(2, *[1] * blocks.dim(), self.kv_heads)
        return blocks[..., None] * (self.num_layers * 2 * self.kv_heads) + heads

    def __repr__(self) -> str:
        return f"<KvCache {len(self.device)} device blocks, {len(self.host)} host blocks, {self.dtype}>"


@dataclass(frozen=True, slots=True)
class Gather:
    """A read of scattered blocks, prepared once and done in every layer."""

    _source: Tensor
    _layer_rows: int
    _index: Tensor
    _target: Tensor
    keys: Tensor  # [jobs, kv_heads, blocks * block_tokens, head_dim], of the layer that was read last
    values: Tensor

    def read(self, layer: int) -> None:
        torch.index_select(self._source[layer * self._layer_rows :], 0, self._index, out=self._target)


def _pin(pool: Tensor, owner: KvCache) -> None:
    """Lock the pool's pages while `owner` lives: only copies from and to such pages run beside compute.

    torch's own pinned memory would take a power of two of bytes, up to twice as many as are wanted.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(pool.data_ptr(), pool.nbytes, 0))
    weakref.finalize(owner, runtime.cudaHostUnregister, pool.data_ptr())


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory when they are first written: a pool that is never filled costs a laptop nothing.

    In huge pages where Linux has them. A layer of a block fills a few of 4 KiB, and their addresses take time to find.
    """
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    # Private, since Linux gives memory that may be shared small pages only.
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes].view(dtype).view(shape)
