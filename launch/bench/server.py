"""A server of our own to measure: started as a user would, stopped when done."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_URL = re.compile(r"Skipjoin serves .* at (http\S+)")
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0


@contextmanager
def serving(options: Sequence[str]) -> Iterator[str]:
    """Run `skipjoin serve OPTIONS` on a free port; yields its base URL. Raises RuntimeError with its log."""
    command = [sys.executable, "-m", "launch", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _wait_until_ready(process, output)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait_until_ready(process: "subprocess.Popen[bytes]", output: TextIO) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        output.seek(0)
        log = output.read()
        if found := _URL.search(log):
            return found[1]
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{log}")
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready after {_START_TIMEOUT_S:.0f} s:\n{log}")
