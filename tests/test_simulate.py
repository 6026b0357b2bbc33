import json
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError
from launch.cli import main
from launch.simulate import Simulate, parse_policies


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, float]]:
    assert main(["simulate", "--jobs", "30", *options]) == 0
    found: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_last_line_is_json_with_all_figures_of_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(capsys, "--policy", "fcfs,skip-join", "--rate", "4")
    assert set(figures) == {"fcfs", "skip-join"}
    assert set(figures["fcfs"]) >= {
        *("mean_jct_s", "p50_jct_s", "p95_jct_s", "p99_jct_s", "mean_norm_s", "p95_norm_s"),
        *("mean_ttft_s", "p95_ttft_s", "stall_share", "preemptions"),
    }
    assert figures["skip-join"]["mean_ttft_s"] < figures["fcfs"]["mean_ttft_s"]


def test_the_same_seed_prints_the_same_and_another_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--policy", "skip-join", "--load", "1.5", "--batch", "4")
    assert run(capsys, *options) == run(capsys, *options) != run(capsys, *options, "--seed", "1")


def test_a_trace_is_simulated_at_its_own_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,prompt,output\n0,10,10\n1000,10,10\n")
    figures = run(capsys, "--trace", str(trace), "--policy", "fcfs")
    assert figures["fcfs"]["makespan_s"] == pytest.approx(1000.3)


@pytest.mark.parametrize("model", ["opt-66b", "opt-175b"])
def test_larger_models_run_too(capsys: pytest.CaptureFixture[str], model: str) -> None:
    figures = run(capsys, "--cost-model", model, "--workload", "alpaca", "--policy", "skip-join")
    assert figures["skip-join"]["mean_norm_s"] > 0.03


def test_runs_are_recorded_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture, folder = tmp_path / "lines.svg", tmp_path / "runs"
    run(capsys, "--policy", "fcfs,srpt", "--timeline", str(picture), "--record", str(folder))
    assert "<svg" in picture.read_text()
    assert {path.name for path in folder.iterdir()} == {"fcfs.jsonl", "srpt.jsonl"}
    assert main(["timeline", str(folder / "fcfs.jsonl"), "--output", str(tmp_path / "one.png")]) == 0


def test_an_unknown_policy_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"lifo.*skip-join"):
        parse_policies("fcfs,lifo")


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="--jobs"):
        Simulate(jobs=0).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "0 a second"),
        ({"load": 0.0}, "0 a second"),
        ({"cv": float("nan")}, "cv nan"),
        ({"kv_device_memory": "100MiB"}, "needs .* KV blocks, and the device has 8"),
        ({"timeline": Path("picture.xyz")}, "does not end as a picture does"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Simulate(jobs=10, policy="fcfs", **options).run()
