"""Servers to measure: started as a user would, stopped when done."""

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from types import FrameType
from typing import IO, NoReturn

from launch.bench.fetch import fetch
from launch.mpiexec import SKIPJOIN

_URL = re.compile(r"Skipjoin serves .* at (http\S+?/v1)")
_START_TIMEOUT_S = 900.0  # vLLM compiles for minutes before it first serves
_STOP_TIMEOUT_S = 60.0
_HOST = "127.0.0.1"


@contextmanager
def serving(options: Sequence[str]) -> Iterator[str]:
    """Run `skipjoin serve OPTIONS` on a free port; yields its base URL. Raises RuntimeError with its log."""

    def announced(log: str) -> str | None:
        found = _URL.search(log)
        return found[1] if found else None

    with _running([*SKIPJOIN, "serve", "--port", "0", *options], None, announced) as url:
        yield url


@contextmanager
def serving_other(command: Callable[[int], Sequence[str]], environment: Mapping[str, str]) -> Iterator[str]:
    """Run another server: `command` of a port, ready when `/health` says so. Yields its base URL, with /v1.

    Raises RuntimeError with its log.
    """
    port = _free_port()
    root = f"http://{_HOST}:{port}"

    def healthy(_: str) -> str | None:
        try:
            fetch(f"{root}/health")
        except (OSError, HTTPException):
            return None
        return f"{root}/v1"

    with _running(command(port), environment, healthy) as url:
        yield url


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str] | None, find_url: Callable[[str], str | None]
) -> Iterator[str]:
    """Yields what `find_url` makes of the log, as soon as that is something."""
    with _sigterm_raises(), tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while (url := find_url(_read(output))) is None:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {process.returncode}:\n{_read(output)}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the server was not ready after {_START_TIMEOUT_S:.0f} s:\n{_read(output)}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends us as an exception does, not at once: a server that nobody stops would go on. In the main thread."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read(output: IO[bytes]) -> str:
    """What a server has written, which goes on at the same time: at the file's position, which is ours as well."""
    size = os.fstat(output.fileno()).st_size
    return os.pread(output.fileno(), size, 0).decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
