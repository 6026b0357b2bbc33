"""What a server adds to its model, measured on a tiny one."""

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from launch.bench.load import LoadResult
from launch.bench.overhead import OverheadBench, _shared_out
from launch.lab.samples import Sample


@pytest.mark.mpi
def test_all_that_a_server_adds_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_model(tmp_path))
    assert OverheadBench(model=model, requests=3, clients=2, load=2, pipeline_parallel=2).run() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < report["beyond_compute_ms"] < report["first_token_ms"]
    assert 0 < report["scheduling_ms"] < report["iteration_ms"]
    assert 0 < report["compute_share"] < 1
    assert report["gateway_us_per_token"] > 0
    assert report["busy_tokens_per_s"] > 0


def test_the_gateways_time_is_shared_out_among_what_it_worked_for() -> None:
    def loop(requests: int, iterations: int, tokens: int) -> tuple[LoadResult, dict[str, float]]:
        samples = [Sample(4, tokens // requests, 0.1, 1.0)] * requests
        seconds = 2e-3 * requests + 8e-4 * iterations + 3e-5 * tokens
        return LoadResult(1.0, samples, []), {
            "skipjoin_iterations_total": iterations,
            "process_cpu_seconds_total": seconds,
        }

    costs = _shared_out([loop(8, 384, 768), loop(128, 70, 1024), loop(64, 400, 6144)])
    assert costs == pytest.approx(
        {"gateway_us_of_request": 2000, "gateway_us_of_iteration": 800, "gateway_us_of_token": 30}
    )
