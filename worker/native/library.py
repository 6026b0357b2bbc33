"""The kernels as one library: compiled for this CPU at first use, kept in the user's cache. Knows no kernel by name.

Needs a C compiler that knows OpenMP. Where there is none the log says so, and torch computes.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
# No contraction: which products are fused with sums must not depend on what the compiler thinks of their surroundings.
_FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-fopenmp", "-shared", "-fPIC"]
_FLAGS += ["-falign-loops=64"]  # a loop of a tile takes a sixth longer where it lies across one line more of the cache
_COMPILE_TIMEOUT_S = 60.0


@functools.cache
def open_library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be compiled.

    Their threads are torch's: the OpenMP library that they need has the name of the one that torch has loaded.
    """
    try:
        return ctypes.CDLL(str(_compiled()))
    except subprocess.CalledProcessError as error:
        logger.warning("no native kernels, torch computes: %s", error.stderr.decode(errors="replace").strip() or error)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("no native kernels, torch computes: %s", error)
    return None


def kernels() -> str:
    """Which there are, by what they are made from; empty where torch computes."""
    library = open_library()
    return "" if library is None else Path(library._name).stem


def _compiled() -> Path:
    """The library for these sources, compiler and CPU. Raises OSError, CalledProcessError, TimeoutExpired."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc)")
    sources = sorted(_FOLDER.glob("*.c"))
    texts = [path.read_bytes() for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
    # The macros name the compiler's version and all that the CPU can do: hosts that differ may share a home.
    macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    key = _digest(b"\0".join([*texts, " ".join(_FLAGS).encode(), macros]))
    folder = Path(platformdirs.user_cache_dir("skipjoin")) / "kernels"
    if (library := _found(folder, key)) is not None:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    # Beside it and then renamed: several ranks may be at it.
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        fresh = Path(beside) / "kernels.so"
        _run([compiler, *_FLAGS, *map(str, sources), "-o", str(fresh)])
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        if (library := _found(folder, key)) is not None:
            return library
        library = folder / f"{key}-{_digest(fresh.read_bytes())}.so"
        fresh.replace(library)
    return library


def _found(folder: Path, key: str) -> Path | None:
    """A library whose name says what is in it: opening one that was cut off could end this process by a signal."""
    named = (path for path in folder.glob(f"{key}-*.so") if path.stem == f"{key}-{_digest(path.read_bytes())}")
    return next(named, None)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S).stdout
