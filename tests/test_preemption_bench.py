"""The bench of preemption: what it does when its long jobs are none."""

from contextlib import contextmanager
from typing import Any

import pytest
from fakes_gateway import FakeEngine, serving

from common.config import ConfigError
from launch.bench import preemption
from launch.bench.preemption import PreemptionBench


def run(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, **options: Any) -> int:
    @contextmanager
    def serve(_: object) -> Any:
        with serving(engine) as url:
            yield f"{url}/v1"

    monkeypatch.setattr(preemption, "serving", serve)
    return PreemptionBench(policies=("fcfs",), rounds=1, **options).run()


def test_short_jobs_are_timed_behind_long_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, FakeEngine("abc"), long_tokens=50) == 0
    assert '"bench": "preemption"' in capsys.readouterr().out


def test_long_jobs_that_are_short_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--long-tokens must be at least 10"):
        run(monkeypatch, FakeEngine("abc"), long_tokens=8)


def test_a_long_job_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a request failed: 400"):
        run(monkeypatch, FakeEngine("abc", max_context=100), long_tokens=5000)
