"""What rounding costs, measured on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from common.config import ConfigError
from launch.bench.quality import QualityBench

WORDS = "the quick brown fox jumps over the lazy dog and runs away from the big bad wolf " * 3


def found(tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    texts = tuple(tmp_path / name for name in ("a.txt", "b.txt"))
    for path in texts:
        path.write_text(WORDS)
    bench = QualityBench(texts=texts, model=str(write_tiny_model(tmp_path)), tokens=70, **options)
    assert bench.run() == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_what_is_not_rounded_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = found(tmp_path, capsys, weights="exact")
    assert report["tokens"] == 2 * 70
    assert report["kl_divergence"] == pytest.approx(0.0, abs=1e-9)
    assert report["same_most_likely"] == 1.0
    assert report["perplexity"] == report["exact_perplexity"]


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_what_is_rounded_costs_little(tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str) -> None:
    report = found(tmp_path, capsys, weights=weights)
    assert 0 < report["kl_divergence"] < 0.01
    assert report["perplexity"] == pytest.approx(report["exact_perplexity"], rel=0.05)
    assert report["perplexity"] != report["exact_perplexity"]


def test_a_text_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    bench = QualityBench(texts=(tmp_path / "none",), model=str(write_tiny_model(tmp_path)))
    with pytest.raises(ConfigError, match="cannot read"):
        bench.run()


@pytest.mark.parametrize("texts", [[], [""], [WORDS, ""]])
def test_there_must_be_something_to_read(tmp_path: Path, texts: list[str]) -> None:
    paths = tuple(tmp_path / f"{number}.txt" for number in range(len(texts)))
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    bench = QualityBench(texts=paths, model=str(write_tiny_model(tmp_path)))
    with pytest.raises(ConfigError, match="needs texts"):
        bench.run()
