"""The parts of an iteration, timed on a tiny model."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from common.config import Stored
from launch.bench.iteration import IterationBench, Watch
from launch.bench.limits import Limits
from worker.models.native_layers import PARTS
from worker.native.library import open_library


def test_a_part_within_another_stops_the_outer_ones_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = Watch()
    with watch.part("outer"), watch.part("inner"):
        pass
    assert watch.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("options", "number_bytes"), [({}, 4), ({"weights": "int8"}, 2), ({"kv_cache_dtype": "fp16"}, 2)], ids=str
)
def test_the_bound_reads_keys_and_values_as_they_are_kept(
    tmp_path: Path, options: dict[str, Any], number_bytes: int
) -> None:
    bench = IterationBench(model=str(write_tiny_model(tmp_path)), threads=1, **options)
    bounds = bench._bounds(Limits(1.0, 1.0))
    assert bounds.kv_bytes == bounds.spec.kv_bytes_per_token(bounds.spec.num_layers, number_bytes)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("weights", "number_bytes"), [("exact", 4), ("bf16", 2), ("int8", 1)])
def test_the_bound_reads_matrices_as_they_are_kept(tmp_path: Path, weights: Stored, number_bytes: int) -> None:
    bench = IterationBench(model=str(write_tiny_model(tmp_path)), threads=1, weights=weights)
    assert bench._bounds(Limits(1.0, 1.0)).weight_bytes == number_bytes


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_bound_reads_half_of_exact_matrices_that_fit_in_16_bits(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors")
    assert IterationBench(model=str(path), threads=1)._bounds(Limits(1.0, 1.0)).weight_bytes == 2


def test_the_bound_is_known_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_library.cache_clear()
    monkeypatch.setenv("PATH", "")
    try:
        assert (
            IterationBench(model=str(write_tiny_model(tmp_path)), threads=1)._bounds(Limits(1.0, 1.0)).weight_bytes == 4
        )
    finally:
        open_library.cache_clear()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("weights", ["exact", "int8"])
def test_every_part_of_an_iteration_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    model = str(write_tiny_model(tmp_path))
    assert IterationBench(model=model, weights=weights, threads=1, jobs=(1, 3), context=9, iterations=2).run() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["jobs"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert row["ms"].keys() == {"schedule", "codec", "inputs and sampling", "layers", "head", "text", *PARTS}
        assert all(ms > 0 for ms in row["ms"].values())


def test_contexts_longer_than_a_chunk_are_measured_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_model(tmp_path))
    assert IterationBench(model=model, threads=1, jobs=(2,), context=600, iterations=1).run() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["context"] == 600
