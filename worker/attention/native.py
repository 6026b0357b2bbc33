"""decode.c: compiled for this CPU at first use, kept in the user's cache, and called for all decoding jobs at once.

Needs a C compiler that knows OpenMP. Where there is none, `open_kernel` says so in the log, and returns None.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from worker.inputs import Segment
from worker.kv_cache import KvCache

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("decode.c")
_FLAGS = ["-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
_COMPILE_TIMEOUT_S = 60.0
_WIDTH = 8  # numbers of a vector in decode.c
# Numbers of keys up to which one thread is as fast as several, and keeps off cores that others use (measured).
_ONE_THREAD = 2**15

_Decode = Callable[..., None]


class _Job(ctypes.Structure):
    _fields_ = (
        ("row", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("num_jobs", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_tokens", ctypes.c_int64),
        ("block_stride", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("jobs", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled function, for one cache."""

    _decode: _Decode
    _cache: KvCache

    def prepare(self, jobs: list[Segment], window: int) -> "NativeDecode":
        """What all layers of an iteration share. Each job has one token, and sees the last `window` slots."""
        cache = self._cache
        longest_first = sorted(jobs, key=lambda s: min(s.end, window), reverse=True)  # threads finish together
        table = (_Job * len(jobs))(
            *(_Job(s.first, max(s.end - window, 0), s.end, s.blocks.ctypes.data) for s in longest_first)
        )
        numbers = sum(min(s.end, window) for s in jobs) * cache.kv_heads * cache.head_dim
        batch = _Batch(
            num_jobs=len(jobs),
            kv_heads=cache.kv_heads,
            head_dim=cache.head_dim,
            block_tokens=cache.block_tokens,
            block_stride=cache.device.stride(0),
            threads=torch.get_num_threads() if numbers > _ONE_THREAD else 1,
            jobs=ctypes.addressof(table),
        )
        return NativeDecode(self._decode, cache.device, batch, (table, jobs))


@dataclass(frozen=True, slots=True)
class NativeDecode:
    """The decoding jobs of one iteration."""

    _decode: _Decode
    _pool: Tensor
    _batch: _Batch
    _owners: object  # of the memory that the batch points to

    def attend(self, layer: int, q: Tensor, out: Tensor, scale: float) -> None:
        """Fill the jobs' rows of `out`. q, out: [tokens, kv_heads, group, head_dim], `out` contiguous."""
        group = q.shape[2]
        assert q.stride()[1:] == (group * q.stride(2), q.stride(2), 1), f"heads with strides {q.stride()}"
        pool = self._pool.data_ptr() + layer * self._pool.stride(1) * self._pool.itemsize
        self._decode(self._batch, pool, q.data_ptr(), q.stride(0), q.stride(2), group, scale, out.data_ptr())


def open_kernel(cache: KvCache) -> Kernel | None:
    """The kernel for `cache`, or None where torch has to do: then the log says why."""
    if cache.torch_device.type != "cpu":
        return None
    if cache.dtype != torch.float32 or cache.head_dim % _WIDTH:
        logger.info("decode attention is torch's: the native one has no %s heads of %d", cache.dtype, cache.head_dim)
        return None
    try:
        return Kernel(_load(_compiled()), cache)
    except subprocess.CalledProcessError as error:
        logger.info("decode attention is torch's: %s", error.stderr.decode(errors="replace").strip() or error)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.info("decode attention is torch's: %s", error)
    return None


def _compiled() -> Path:
    """The library for this source, compiler and CPU. Raises OSError, CalledProcessError, TimeoutExpired."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc) to compile the native one")
    source = _SOURCE.read_bytes()
    # The macros name the compiler's version and all that the CPU can do: hosts that differ may share a home.
    macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join([source, " ".join(_FLAGS).encode(), macros])).hexdigest()[:16]
    library = Path(platformdirs.user_cache_dir("skipjoin")) / "kernels" / f"{key}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Beside it and then renamed: several ranks may be at it.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(fresh)])
            fresh.replace(library)
    return library


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S).stdout


@functools.cache
def _load(library: Path) -> _Decode:
    """Its threads are torch's: the OpenMP library that it needs has the name of the one that torch has loaded."""
    decode = ctypes.CDLL(str(library)).decode
    decode.restype = None
    decode.argtypes = [
        ctypes.POINTER(_Batch),
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_float,
        ctypes.c_void_p,
    ]
    return decode
