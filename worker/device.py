"""What a stage computes with: device, number type, threads, and how much memory is left for KV."""

import logging
import math
import os
from dataclasses import dataclass

import psutil
import torch

from common.config import Config, ConfigError, Stored, parse_bytes
from common.model_spec import ModelSpec
from worker import cgroups
from worker.attention.native import attends_in_tiles, attends_natively

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KV_DTYPES = {**_DTYPES, "int8": torch.int8}
_NAMES = {dtype: name for name, dtype in _KV_DTYPES.items()}
# Shares of free memory that KV takes when the user names no size; see Config.
_CUDA_SHARE, _CPU_SHARE, _HOST_SHARE = 0.8, 0.15, 0.25
_MANY_CORES = 4  # for a stage: whoever has one of so many has probably been bound to it unknowingly

# Where a worker runs: its host's name and the cores that it may use there.
Place = tuple[str, frozenset[int]]


@dataclass(frozen=True, slots=True)
class HostShare:
    """A stage's share of its host. The default: alone, with all cores that this process may use."""

    index: int = 0  # among the stages on this host
    stages: int = 1  # on this host
    cores: int | None = None  # for this stage; None: all that this process may use
    only_host: bool = True  # no stage is on another host

    @classmethod
    def of(cls, index: int, places: list[Place]) -> "HostShare":
        """The share of worker `index`, when `places` are those of all workers.

        Launchers may bind every rank to cores of its own, or give all ranks of a host the same ones: cores are
        divided by the workers that may use any of them.
        """
        host, cores = places[index]
        on_host = [i for i, place in enumerate(places) if place[0] == host]
        sharing = sum(bool(places[i][1] & cores) for i in on_host)
        return cls(on_host.index(index), len(on_host), max(1, len(cores) // sharing), len(on_host) == len(places))


@dataclass(frozen=True, slots=True)
class Placement:
    """A stage's device and type."""

    device: torch.device
    dtype: torch.dtype  # of what is computed
    kv_dtype: torch.dtype  # of keys and values in the cache
    threads: int
    stored: Stored = "exact"  # how matrices are kept

    @property
    def name(self) -> str:
        """For people: `cpu, 2 threads` or `cuda:0 NVIDIA H200`."""
        if self.device.type == "cpu":
            return f"cpu, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.device} {torch.cuda.get_device_name(self.device)}"

    @property
    def dtype_name(self) -> str:
        """The type, and what is kept in another: `fp32, weights in int8, KV in fp16`. Times depend on each of them."""
        weights = "" if self.stored == "exact" else f", weights in {self.stored}"
        kv = "" if self.kv_dtype == self.dtype else f", KV in {_NAMES[self.kv_dtype]}"
        return f"{_NAMES[self.dtype]}{weights}{kv}"


def place(config: Config, spec: ModelSpec, share: HostShare) -> Placement:
    """Choose device and type, and make torch use them. Several stages may share a GPU. Raises ConfigError."""
    device = _device(config, share)
    auto = "fp32" if device.type == "cpu" else spec.dtype
    threads = config.threads or _threads(share)
    host_cores = os.cpu_count() or 1
    is_bound = share.cores == 1 and not config.threads
    if device.type == "cpu" and is_bound and host_cores >= _MANY_CORES * share.stages:
        more = "srun --cpus-per-task, mpirun --bind-to none"
        logger.warning("this stage may use 1 of the host's %d cores; for more: %s", host_cores, more)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = _DTYPES[auto if config.dtype == "auto" else config.dtype]
    for option, kept in (("--weights", config.weights), ("--kv-cache-dtype", config.kv_cache_dtype)):
        if kept not in ("auto", "exact") and (device.type, dtype) != ("cpu", torch.float32):
            raise ConfigError(f"{option} {kept} is for stages that compute in fp32 on a CPU")
    return Placement(device, dtype, _kv_dtype(config, spec, dtype), threads, config.weights)


def _threads(share: HostShare) -> int:
    """One for each core. Not more than a quota allows, rounded up: threads wait for each other, and so for its end."""
    cores = share.cores or len(os.sched_getaffinity(0))
    quota = cgroups.cpu_quota() / share.stages
    return cores if math.isinf(quota) else min(cores, max(1, math.ceil(quota)))


def _kv_dtype(config: Config, spec: ModelSpec, dtype: torch.dtype) -> torch.dtype:
    """Who takes rounded matrices takes rounded keys and values, the kind that suits the CPU, unless told otherwise.

    Where torch attends, it sums in an order that depends on the batch, and rounding would make more of that. Raises
    ConfigError for what this CPU lacks.
    """
    if config.kv_cache_dtype == "auto":
        if config.weights == "exact" or not attends_natively(spec.head_dim):
            return dtype
        return torch.bfloat16 if attends_in_tiles(spec.head_dim, config.block_tokens) else torch.float16
    if config.kv_cache_dtype in ("bf16", "int8") and not attends_in_tiles(spec.head_dim, config.block_tokens):
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype} is for CPUs with AMX, models whose heads are a multiple of 32, "
            "and --block-tokens that are a multiple of 16; fp16 serves everywhere"
        )
    return dtype if config.kv_cache_dtype == "exact" else _KV_DTYPES[config.kv_cache_dtype]


def _device(config: Config, share: HostShare) -> torch.device:
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", share.index % torch.cuda.device_count())
    if config.device == "cuda":
        raise ConfigError(f"--device cuda, but torch {torch.__version__} sees no CUDA device on this host")
    return torch.device("cpu")


def gpu_id(device: torch.device) -> str:
    """Empty for a CPU. Ranks may know different GPUs by the same number, as launchers show each its own."""
    return "" if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)


def kv_budget(config: Config, placement: Placement, share: HostShare, block_bytes: int) -> tuple[int, int]:
    """Bytes for the device pool and for the host pool of one stage, measured after loading.

    On a GPU as if no other stage were on it: who knows of all stages divides.
    """
    device = _bytes(config.kv_device_blocks, config.kv_device_memory, block_bytes)
    host = _bytes(config.kv_host_blocks, config.kv_host_memory, block_bytes)
    if device is None:
        device = int(_free_on_device(placement, share))
    if host is None:
        host = int(_free_on_host(share) * _HOST_SHARE)
    return device, host


def _bytes(blocks: int | None, memory: str | None, block_bytes: int) -> int | None:
    """What the user asks for, if anything."""
    if blocks is not None:
        return blocks * block_bytes
    return None if memory is None else parse_bytes(memory)


def _free_on_device(placement: Placement, share: HostShare) -> float:
    if placement.device.type == "cpu":
        return _free_on_host(share) * _CPU_SHARE
    torch.cuda.empty_cache()  # What loading has let go of is free, too.
    free, _ = torch.cuda.mem_get_info(placement.device)
    return float(free) * _CUDA_SHARE


def _free_on_host(share: HostShare) -> float:
    return min(psutil.virtual_memory().available, cgroups.free_memory()) / share.stages
