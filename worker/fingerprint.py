"""What measured times belong to, beside the configuration: this code, its kernels, the torch below it, and the CPU."""

import functools
import hashlib
import re
from pathlib import Path

import torch

from worker.native.library import kernels

_CPU_LINES = re.compile(r"^(?:model name|flags|CPU part|Features)\s*:.*$", re.MULTILINE)  # x86-64 and arm64


@functools.cache
def fingerprint() -> str:
    """The same on hosts of one kind that run the same code. Names no GPU: the device's name does."""
    digest = hashlib.sha256(f"{torch.__version__} {kernels()}".encode())
    digest.update(repr(sorted(set(_CPU_LINES.findall(_cpu_info())))).encode())
    package = Path(__file__).parent
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".c", ".h")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
