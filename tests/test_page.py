from pathlib import Path

import msgspec

from launch.lab.experiments.experiment import Data, number, table
from launch.lab.page import Kept, Page


class Small:
    """An experiment whose prose, that of azure, asks for one piece."""

    name = "azure"

    def measure(self, seeds: int) -> Data:
        return {"seeds": seeds}

    def render(self, data: Data, pictures: Path) -> dict[str, str]:
        return {"figures": f"![from {data['seeds']} seeds](azure.png)"}


def test_an_experiment_is_kept_with_its_origin_and_described_from_what_is_kept(tmp_path: Path) -> None:
    page = Page(tmp_path, (Small(),))
    page.measure(Small(), seeds=7)
    kept = msgspec.json.decode((tmp_path / "reproduction" / "azure.json").read_bytes(), type=Kept)
    assert kept.command == "skipjoin reproduce --only azure --seeds 7"
    assert kept.data == {"seeds": 7}
    page.write()
    text = page.path.read_text()
    assert "![from 7 seeds](reproduction/azure.png)" in text
    assert f"commit {kept.commit}" in text


def test_what_was_not_run_is_not_on_the_page(tmp_path: Path) -> None:
    page = Page(tmp_path, (Small(),))
    page.write()
    assert "Azure" not in page.path.read_text()


def test_numbers_have_three_digits_and_tables_are_markdown() -> None:
    assert [number(value) for value in (0.01234, 1.0, 1234.5, None)] == ["0.0123", "1", "1234", "-"]
    assert table(["a", "b"], [[1.5, "x"]]) == "| a | b |\n| --- | --- |\n| 1.5 | x |\n"
