"""The benchmark of a GPU, tried on a CPU with a tiny model."""

import json
import sys

import pytest
import torch

from launch.bench.gpu import _LLAMA_3_8B, GpuBench
from launch.bench.limits import Bounds, Limits
from launch.cli import main


def test_every_part_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = GpuBench(
        device="cpu",
        shape="tiny",
        layers=2,
        jobs=(1, 3),
        context=40,
        prompts=(20, 70),
        iterations=2,
        generating_jobs=2,
        output_tokens=5,
    )
    monkeypatch.setitem(sys.modules, "transformers", None)  # not installed: it takes half a minute to warm up
    assert bench.run() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["jobs"] for row in report["decode"]] == [1, 3]
    assert [row["tokens"] for row in report["prompt"]] == [20, 70]
    rows = [*report["decode"], *report["prompt"]]
    assert all(row["s"] > 0 and row["least_s"] > 0 for row in rows)
    assert report["copies"]["bytes_copied"] == 64 * 16 * 2 * 2 * 2 * 16 * 4  # blocks of 16 tokens, 2 layers, fp32
    assert report["copies"]["both_s"] > 0
    assert report["skipjoin_s"] > 0
    assert report["transformers_s"] is None


def test_the_least_time_is_that_of_bytes_and_operations() -> None:
    bounds = Bounds(Limits(bytes_per_s=3e12, flops_per_s=1e15), _LLAMA_3_8B, weight_bytes=2, kv_bytes=2**17)
    assert bounds.decode_s(1, 0) == pytest.approx(7.5e9 * 2 / 3e12, rel=0.01)  # 8.03e9 weights less the embedding
    assert bounds.decode_s(9, 1000) - bounds.decode_s(1, 1000) == pytest.approx(8 * 1000 * 131072 / 3e12)
    assert bounds.prompt_s(1) == pytest.approx(2 * 6.98e9 / 1e15, rel=0.01)  # without embedding and head
    assert bounds.prompt_s(8192) / bounds.prompt_s(1024) == pytest.approx(8 * 1.13, rel=0.02)  # attention grows faster


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_without_a_gpu_it_says_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipjoin: --device cuda, but torch")
