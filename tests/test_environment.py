"""launch/environment.py and the rule of the Makefile that starts it: which Python the environment is made of."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.environment import Interpreter, choose

ROOT = Path(__file__).parents[1]


def interpreter(path: str, seconds: float, version: tuple[int, int, int] = (3, 12, 1), **other: object) -> Interpreter:
    return Interpreter(
        **{"implementation": "CPython", "has_pip": True} | other, path=path, version=version, seconds=seconds
    )


def test_the_first_is_taken_unless_another_is_much_quicker() -> None:
    first, little, much = interpreter("first", 1.0), interpreter("little", 0.9), interpreter("much", 0.6)
    assert choose(first, []) is first
    assert choose(first, [little]) is first
    assert choose(first, [little, much]) is much


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
def test_what_cannot_run_skipjoin_is_taken_only_where_there_is_nothing_else(unfit: Interpreter) -> None:
    able = interpreter("able", 1.0)
    assert choose(able, [unfit]) is able
    assert choose(unfit, [able]) is able
    assert choose(unfit, []) is unfit  # and says itself what it lacks


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python_that_answers(folder: Path, name: str, seconds: float) -> Path:
    """To the probe only: environments of it are empty."""
    answer = r"%s\nCPython\n3\n12\n7\n1\n" + str(seconds)
    return script(folder, name, f"case \"$*\" in *time*) printf '{answer}' {folder / name};; *) exit 0;; esac")


def make(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The Makefile's rule for the environment, where PATH is `folder`."""
    program = shutil.which("make")
    assert program is not None
    command = [program, "-C", str(ROOT), f"VENV={folder / 'made'}", *options, f"{folder / 'made'}/bin/pip"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        command, env=clean | {"PATH": str(folder)}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_environment_is_made_of_a_python_that_runs(tmp_path: Path) -> None:
    """As where pyenv has names for versions that are not in use: they exist, and fail."""
    script(tmp_path, "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    script(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"creating {tmp_path / 'made'} with {sys.executable}\n" in done.stdout
    assert (tmp_path / "made" / "bin" / "pip").exists()


def test_of_two_pythons_the_much_quicker_makes_the_environment_and_the_other_is_named(tmp_path: Path) -> None:
    script(tmp_path, "python3", f'exec {sys.executable} "$@"')
    quick = python_that_answers(tmp_path, "python3.12", 1e-9)
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{quick} (3.12.7) is " in done.stdout
    assert f"To have that one nevertheless: make clean serve PYTHON={sys.executable}\n" in done.stdout
    assert f"creating {tmp_path / 'made'} with {quick}\n" in done.stdout


def test_a_python_that_the_user_names_is_taken_as_it_is(tmp_path: Path) -> None:
    python_that_answers(tmp_path, "python3.12", 1e-9)
    named = script(tmp_path, "named", f'exec {sys.executable} "$@"')
    done = make(tmp_path, f"PYTHON={named}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python3.12") == 0
    assert (tmp_path / "made" / "bin" / "pip").exists()


@pytest.mark.parametrize("options", [(), ("PYTHON=python3",)])
def test_where_no_python_will_do_it_says_which_would(tmp_path: Path, options: tuple[str, ...]) -> None:
    script(tmp_path, "python3", "exit 1")  # as too old a one answers whether it is new enough
    done = make(tmp_path, *options)
    assert done.returncode != 0
    assert "Skipjoin needs Python 3.11 to 3.13; choose one: make PYTHON=python3.12 ..." in done.stderr
