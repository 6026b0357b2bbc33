"""Creates the virtual environment of the Makefile: `python3 launch/environment.py .venv [PYTHON]`.

Without PYTHON it takes `python3`, or one of PATH that is much quicker. How an interpreter was compiled is worth a third
of what the gateway does for a token: pyenv's are compiled without optimization by profile, distributions' with it, and
either may come first in PATH. Runs before anything is installed, so with the standard library only.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_OLDEST = (3, 11)
_NEWEST = (3, 13)
_MUCH_QUICKER = 1.25  # times; less is no reason to leave the Python that the user's shell would start

# What a gateway does: small objects, calls, dictionaries, formatted text. Of many short pieces the quickest was not
# interrupted, on a busy machine either. Prints version, whether an environment gets a pip, and seconds.
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
print(platform.python_implementation(), *sys.version_info[:3], int(has_pip), least)
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs. `seconds` are those of the probe's work."""

    path: str
    implementation: str
    version: tuple[int, int, int]
    has_pip: bool
    seconds: float

    @property
    def is_supported(self) -> bool:
        return self.implementation == "CPython" and _OLDEST <= self.version[:2] <= _NEWEST

    @property
    def will_do(self) -> bool:
        return self.is_supported and self.has_pip

    def __str__(self) -> str:
        return f"{self.path} ({'.'.join(map(str, self.version))})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Create the virtual environment of the Makefile.")
    parser.add_argument("directory", help="where to put it")
    parser.add_argument("python", nargs="?", help="the Python to take; else python3, or a much quicker one of PATH")
    options = parser.parse_args(arguments)
    names = [options.python] if options.python else _names(os.environ.get("PATH", os.defpath))
    found = [interpreter for name in names if (interpreter := probe(name))]
    chosen = choose(found)
    if chosen is None:
        print(_nothing_found(found), file=sys.stderr)
        return 1
    print(f"creating {options.directory} with {chosen}{_compared(chosen, found[0])}", flush=True)
    return subprocess.run([chosen.path, "-m", "venv", options.directory], check=False).returncode


def choose(found: Sequence[Interpreter]) -> Interpreter | None:
    """The first that will do, unless another is much quicker: then the quickest."""
    able = [interpreter for interpreter in found if interpreter.will_do]
    if not able:
        return None
    quickest = min(able, key=lambda interpreter: interpreter.seconds)
    return quickest if quickest.seconds * _MUCH_QUICKER <= able[0].seconds else able[0]


def probe(name: str) -> Interpreter | None:
    """Ask a Python what it is and time it; None if it does not run, as pyenv's names of versions not in use do not."""
    try:
        answer = subprocess.run([name, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)
        implementation, *version, has_pip, seconds = answer.stdout.split()
        major, minor, micro = map(int, version)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(name, implementation, (major, minor, micro), has_pip == "1", float(seconds))


def _names(search: str) -> Iterable[str]:
    """Pythons of PATH, plain `python3` first: it is what the user's shell starts."""
    commands = ["python3", *(f"python3.{minor}" for minor in range(_NEWEST[1], _OLDEST[1] - 1, -1))]
    seen = set()
    for command in commands:
        for folder in search.split(os.pathsep):
            path = Path(folder or ".", command)
            if os.access(path, os.X_OK) and path.resolve() not in seen:
                seen.add(path.resolve())
                yield str(path)


def _compared(chosen: Interpreter, first: Interpreter) -> str:
    if chosen is first or not first.will_do:
        return ""
    return f", {first.seconds / chosen.seconds:.1f} times as quick as {first}; make PYTHON={first.path} takes that one"


def _nothing_found(found: Sequence[Interpreter]) -> str:
    supported = [interpreter for interpreter in found if interpreter.is_supported]
    if supported:
        return (
            f"{supported[0]} has no ensurepip (Debian has it in python3-venv); "
            "install it, or choose another Python: make PYTHON=python3.12 ..."
        )
    there = f", and here is {', '.join(map(str, found))}" if found else ""
    return f"Skipjoin needs Python 3.11 to 3.13{there}; choose one: make PYTHON=python3.12 ..."


if __name__ == "__main__":
    sys.exit(main())
