"""Creates the virtual environment of the Makefile: `python launch/environment.py .venv [--this]`.

With the Python that runs it, or without `--this` with one of PATH that is much quicker. How an interpreter was compiled
is worth a third of what the gateway does for a token: pyenv's are compiled without optimization by profile,
distributions' with it, and either may come first in PATH. Runs before anything is installed, so with the standard
library only.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_OLDEST = (3, 11)
_NEWEST = (3, 13)
_MUCH_QUICKER = 1.25  # times; less is no reason to leave the Python that the user's shell would start

# What a gateway does: small objects, calls, dictionaries, formatted text. Of many short pieces the quickest was not
# interrupted, on a busy machine either. Prints what an Interpreter holds.
_PROBE = """
import importlib.util, platform, sys, time

class Token:
    def __init__(self, number):
        self.number = number
        self.seen = {}
    def emit(self, place):
        self.seen[place] = (self.number, place)
        return self.seen.get(place - 1)

def work():
    parts = []
    for number in range(100):
        token = Token(number)
        token.emit(number)
        token.emit(number + 1)
        parts.append("%d:%d" % (token.number, len(token.seen)))
    return ",".join(parts)

least = float("inf")
for _ in range(1000):
    begin = time.perf_counter()
    work()
    least = min(least, time.perf_counter() - begin)
has_pip = importlib.util.find_spec("ensurepip") is not None
print(sys.executable, platform.python_implementation(), *sys.version_info[:3], int(has_pip), least, sep="\\n")
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs."""

    path: str
    implementation: str
    version: tuple[int, int, int]
    has_pip: bool  # whether environments that it makes get one
    seconds: float  # for the probe's work

    @property
    def will_do(self) -> bool:
        return self.implementation == "CPython" and _OLDEST <= self.version[:2] <= _NEWEST and self.has_pip

    def __str__(self) -> str:
        return f"{self.path} ({'.'.join(map(str, self.version))})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Create the virtual environment of the Makefile.")
    parser.add_argument("directory", help="where to put it")
    parser.add_argument("--this", action="store_true", help="with this Python, though PATH may have a quicker one")
    options = parser.parse_args(arguments)
    python = sys.executable if options.this else _quickest()
    print(f"creating {options.directory} with {python}", flush=True)
    return subprocess.run([python, "-m", "venv", options.directory], check=False).returncode


def choose(first: Interpreter, others: Iterable[Interpreter]) -> Interpreter:
    """The first, unless one that will do is much quicker: then the quickest."""
    able = [interpreter for interpreter in (first, *others) if interpreter.will_do]
    quickest = min(able, key=lambda interpreter: interpreter.seconds, default=first)
    return quickest if not first.will_do or quickest.seconds * _MUCH_QUICKER <= first.seconds else first


def probe(command: str) -> Interpreter | None:
    """Ask a Python what it is and time it; None if it does not run, as pyenv's names of versions not in use do not."""
    try:
        answer = subprocess.run([command, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)
        path, implementation, major, minor, micro, has_pip, seconds = answer.stdout.splitlines()
        version = int(major), int(minor), int(micro)
        return Interpreter(path, implementation, version, has_pip == "1", float(seconds))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _quickest() -> str:
    first = probe(sys.executable)
    if first is None:
        return sys.executable  # which says itself what is wrong
    chosen = choose(first, filter(None, map(probe, _commands(os.environ.get("PATH", os.defpath)))))
    if chosen is not first and first.will_do:
        print(f"{chosen} is {first.seconds / chosen.seconds:.1f} times as quick as {first}.")
        print(f"To have that one nevertheless: make clean serve PYTHON={first.path}")
    return chosen.path


def _commands(search: str) -> Iterator[str]:
    for minor in range(_NEWEST[1], _OLDEST[1] - 1, -1):
        for folder in search.split(os.pathsep):
            command = os.path.join(folder or os.curdir, f"python3.{minor}")
            if os.access(command, os.X_OK):
                yield command


if __name__ == "__main__":
    sys.exit(main())
