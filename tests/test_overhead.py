"""What a server adds to its model, measured on a tiny one."""

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from launch.bench.overhead import OverheadBench


@pytest.mark.mpi
def test_all_that_a_server_adds_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_model(tmp_path))
    assert OverheadBench(model=model, requests=3, clients=2, load=2, pipeline_parallel=2).run() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < report["beyond_compute_ms"] < report["first_token_ms"]
    assert 0 < report["scheduling_ms"] < report["iteration_ms"]
    assert 0 < report["compute_share"] < 1
    assert report["gateway_us_per_token"] > 0
    assert report["tokens_per_s"] > 0
