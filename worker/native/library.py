"""The kernels as one library: compiled for this CPU at first use, kept in the user's cache. Knows no kernel by name.

Needs a C compiler that knows OpenMP. Where there is none the log says so, and torch computes.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
# No contraction: which products are fused with sums must not depend on what the compiler thinks of their surroundings.
_FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-fopenmp", "-shared", "-fPIC"]
_COMPILE_TIMEOUT_S = 60.0


@functools.cache
def open_library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be compiled.

    Their threads are torch's: the OpenMP library that they need has the name of the one that torch has loaded.
    """
    try:
        return _loaded(_library())
    except subprocess.CalledProcessError as error:
        logger.warning("no native kernels, torch computes: %s", error.stderr.decode(errors="replace").strip() or error)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("no native kernels, torch computes: %s", error)
    return None


def kernels() -> str:
    """Which there are, by what they are made from; empty where torch computes."""
    library = open_library()
    return "" if library is None else Path(library._name).stem


@dataclass(frozen=True, slots=True)
class _Library:
    """Where the library for these sources, compiler and CPU is kept, and how it is made."""

    path: Path
    command: list[str]  # all but where to

    def compile(self) -> None:
        """Raises OSError, CalledProcessError, TimeoutExpired."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Beside it and then linked: several ranks may be at it, and the first one's stays, as others may have it open.
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            fresh = Path(folder) / self.path.name
            _run([*self.command, "-o", str(fresh)])
            with fresh.open("rb") as file:  # A library that was cut off by a power failure could end every start.
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, self.path)


def _loaded(library: _Library) -> ctypes.CDLL:
    """Raises as `_Library.compile` does."""
    if library.path.is_file():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(library.path))
        library.path.unlink(missing_ok=True)  # It is damaged.
    library.compile()
    return ctypes.CDLL(str(library.path))


def _library() -> _Library:
    """Raises OSError, CalledProcessError, TimeoutExpired."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc)")
    sources = sorted(_FOLDER.glob("*.c"))
    texts = [path.read_bytes() for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
    # The macros name the compiler's version and all that the CPU can do: hosts that differ may share a home.
    macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join([*texts, " ".join(_FLAGS).encode(), macros])).hexdigest()[:16]
    path = Path(platformdirs.user_cache_dir("skipjoin")) / "kernels" / f"{key}.so"
    return _Library(path, [compiler, *_FLAGS, *map(str, sources)])


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S).stdout
