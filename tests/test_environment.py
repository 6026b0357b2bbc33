"""launch/environment.py: which Python the Makefile's environment is made of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.environment import Interpreter, choose

SCRIPT = Path(__file__).parents[1] / "launch" / "environment.py"


def interpreter(path: str, seconds: float, version: tuple[int, int, int] = (3, 12, 1), **other: object) -> Interpreter:
    return Interpreter(
        **{"implementation": "CPython", "has_pip": True} | other, path=path, version=version, seconds=seconds
    )


def test_the_first_is_taken_unless_another_is_much_quicker() -> None:
    first, little, much = interpreter("first", 1.0), interpreter("little", 0.9), interpreter("much", 0.6)
    assert choose([first, little]) is first
    assert choose([first, little, much]) is much


@pytest.mark.parametrize(
    "unfit",
    [
        interpreter("old", 0.1, (3, 10, 9)),
        interpreter("new", 0.1, (3, 14, 0)),
        interpreter("bare", 0.1, has_pip=False),
        interpreter("pypy", 0.1, implementation="PyPy"),
    ],
    ids=lambda python: python.path,
)
def test_what_cannot_run_skipjoin_is_never_taken(unfit: Interpreter) -> None:
    able = interpreter("able", 1.0)
    assert choose([unfit, able]) is able
    assert choose([unfit]) is None


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def create(search: Path, directory: Path, *python: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), str(directory), *python]
    return subprocess.run(
        command, env=os.environ | {"PATH": str(search)}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_environment_is_made_of_a_python_that_runs(tmp_path: Path) -> None:
    """As where pyenv has names for versions that are not in use: they exist, and fail."""
    script(tmp_path, "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    script(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    done = create(tmp_path, tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"creating {tmp_path / 'made'} with {tmp_path / 'python3.12'} (")
    assert (tmp_path / "made" / "bin" / "pip").exists()


def test_of_two_pythons_the_quicker_makes_the_environment_and_the_other_is_named(tmp_path: Path) -> None:
    answer = "echo CPython 3 11 7 1"
    slow = script(tmp_path, "python3", f"{answer} 0.003")
    quick = script(tmp_path, "python3.11", f'case "$*" in *-c*) {answer} 0.002;; *) exit 0;; esac')
    done = create(tmp_path, tmp_path / "made")
    assert done.returncode == 0
    assert done.stdout == (
        f"creating {tmp_path / 'made'} with {quick} (3.11.7), 1.5 times as quick as {slow} (3.11.7); "
        f"make PYTHON={slow} takes that one\n"
    )


def test_a_python_that_the_user_names_is_taken_as_it_is(tmp_path: Path) -> None:
    script(tmp_path, "python3", "echo CPython 3 11 7 1 0.001")
    named = script(tmp_path, "slow", 'case "$*" in *-c*) echo CPython 3 11 7 1 0.003;; *) exit 0;; esac')
    done = create(tmp_path, tmp_path / "made", str(named))
    assert (done.returncode, done.stdout) == (0, f"creating {tmp_path / 'made'} with {named} (3.11.7)\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("CPython 3 10 4 1 0.001", "needs Python 3.11 to 3.13, and here is {python} (3.10.4); choose one"),
        ("CPython 3 12 4 0 0.001", "{python} (3.12.4) has no ensurepip (Debian has it in python3-venv)"),
    ],
)
def test_where_no_python_will_do_it_says_what_is_missing(tmp_path: Path, answer: str, told: str) -> None:
    python = script(tmp_path, "python3", f"echo {answer}")
    done = create(tmp_path, tmp_path / "made")
    assert done.returncode == 1
    assert told.format(python=python) in done.stderr
