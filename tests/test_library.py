"""How the kernels are compiled, and what happens where they cannot be."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.fingerprint import fingerprint
from worker.native.library import kernels, open_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

COMPILE = """
from worker.native.library import open_library
assert open_library() is not None
"""


@pytest.fixture(autouse=True)
def opened_anew() -> Iterator[None]:
    open_library.cache_clear()
    yield
    open_library.cache_clear()


def test_without_a_compiler_torch_does_it_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.INFO):
        assert open_library() is None
    assert "no C compiler" in caplog.text


def test_a_compiler_that_fails_is_quoted_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert open_library() is None
    assert "no such luck" in caplog.text


def test_times_without_kernels_are_not_those_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels = fingerprint.__wrapped__()
    open_library.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert kernels() == ""
    assert fingerprint.__wrapped__() != with_kernels


def test_processes_that_compile_at_the_same_time_leave_one_library_and_another_mends_it(tmp_path: Path) -> None:
    processes = [compile_in_another_process(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    [library] = (tmp_path / "skipjoin" / "kernels").iterdir()
    whole = library.read_bytes()
    library.write_bytes(whole[:70_000])  # opening it would be a SIGBUS
    assert compile_in_another_process(tmp_path).wait(60) == 0
    assert library.read_bytes() == whole


def compile_in_another_process(cache: Path) -> "subprocess.Popen[bytes]":
    root = Path(__file__).parents[1]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": f"{root}:{root / 'tests'}"}
    return subprocess.Popen([sys.executable, "-c", COMPILE], cwd=root, env=environment)
