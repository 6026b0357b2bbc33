"""The page of the paper's experiments is what its kept data say."""

from pathlib import Path

import pytest

from common.config import ConfigError
from launch.lab.page import Page
from launch.reproduce import EXPERIMENTS, Reproduce, choose

DOCS = Path(__file__).parents[1] / "docs"
KEPT = [DOCS / "reproduction" / f"{experiment.name}.json" for experiment in EXPERIMENTS]
DATA = [path for path in KEPT if path.exists()]


def test_the_page_is_what_the_kept_data_say(tmp_path: Path) -> None:
    folder = tmp_path / "reproduction"
    folder.mkdir()
    for path in DATA:
        (folder / path.name).write_bytes(path.read_bytes())
    page = Page(tmp_path, EXPERIMENTS)
    page.write()
    assert page.path.read_text() == (DOCS / "reproduction.md").read_text(), "run: skipjoin reproduce --only none"
    drawn, committed = ({path.name for path in place.glob("*.png")} for place in (folder, DOCS / "reproduction"))
    assert drawn == committed


def test_simulations_are_run_unless_experiments_are_named() -> None:
    assert [experiment.name for experiment in choose(None)] == [
        e.name for e in EXPERIMENTS if not e.name.startswith("engine")
    ]
    assert [experiment.name for experiment in choose("engine, rates")] == ["engine", "rates"]
    assert choose("none") == []


def test_an_experiment_that_is_none_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"nonsense.*rates"):
        choose("nonsense")


def test_no_seeds_are_refused_and_a_new_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        Reproduce(seeds=0, folder=tmp_path).run()
    assert Reproduce(only="none", folder=tmp_path / "new").run() == 0
    assert (tmp_path / "new" / "reproduction.md").exists()
