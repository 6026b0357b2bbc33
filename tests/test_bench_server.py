"""Servers that are measured: they do not outlive the benchmark, and their log is theirs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.bench.server import _read

END_TIMEOUT_S = 30.0
MEASURE = """
import os, sys
from launch.bench.server import serving_other
server = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(600)"
with serving_other(lambda port: [sys.executable, "-c", server, sys.argv[1]], os.environ):
    pass
"""


def test_a_benchmark_that_is_told_to_end_while_a_server_starts_stops_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    os.mkfifo(told)
    bench = subprocess.Popen([sys.executable, "-c", MEASURE, str(told)])
    try:
        server = int(told.read_text())  # waits for the server to say it
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(END_TIMEOUT_S) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
    finally:
        bench.kill()
        bench.wait()


def test_reading_a_log_leaves_the_place_where_its_server_writes(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as log:  # the position is shared with a process that inherits the file
        log.write("▄ loading".encode()[1:])  # a character that is not all there
        log.flush()
        log.seek(4)
        assert _read(log) == "\ufffd\ufffd loading"
        assert os.lseek(log.fileno(), 0, os.SEEK_CUR) == 4
