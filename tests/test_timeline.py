from pathlib import Path

import msgspec
import pytest

from common.config import ConfigError
from gateway.recording import Change
from launch.lab.timeline import MOST_JOBS, Span, draw_timelines, joined, lives, spans
from launch.timeline import Timeline

LIFE = [
    Change(10.0, 4, "cold", 0, 0),
    Change(11.0, 4, "runs", 0, 0),
    Change(12.0, 4, "device", 0, 1),
    Change(12.0, 4, "runs", 0, 1),
    Change(13.0, 4, "device", 1, 2),
    Change(13.001, 4, "runs", 1, 2),
    Change(14.0, 4, "ended", 1, 3),
]


def test_a_life_is_told_in_spans_and_moments_between_iterations_are_none() -> None:
    assert joined(spans(LIFE)) == [
        Span(4, 0.0, 1.0, "cold", 0),
        Span(4, 1.0, 3.0, "runs", 0),
        Span(4, pytest.approx(3.001), 4.0, "runs", 1),
    ]


def test_who_has_not_ended_lasts_to_the_end() -> None:
    changes = [Change(0.0, 1, "runs", 0, 0), Change(0.0, 2, "cold", 0, 0), Change(5.0, 1, "ended", 0, 3)]
    assert sorted(joined(spans(changes)), key=lambda span: span.job) == [
        Span(1, 0.0, 5.0, "runs", 0),
        Span(2, 0.0, 5.0, "cold", 0),
    ]


def test_recordings_of_one_name_in_two_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = tuple(tmp_path / name for name in ("a/run.jsonl", "b/run.jsonl", "b/other.jsonl"))
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\n".join(map(msgspec.json.encode, LIFE)) + b"\n")
    drawn: list[str] = []
    monkeypatch.setattr("launch.timeline.draw_timelines", lambda panels, output: drawn.extend(panels))
    Timeline(recordings=paths).run()
    assert drawn == [str(paths[0]), str(paths[1]), "other"]


def test_nothing_recorded_has_no_spans() -> None:
    assert joined(spans([])) == []


def test_a_picture_is_drawn_and_more_jobs_than_lines_are_left_out(tmp_path: Path) -> None:
    many = [Change(float(job), job, "runs", job % 3, 0) for job in range(MOST_JOBS + 5)]
    draw_timelines({"few": lives(LIFE), "many": lives(many)}, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_the_command_refuses_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text("hello\n")
    for name in ("empty", "other", "absent"):
        with pytest.raises(ConfigError, match=name):
            Timeline(recordings=(tmp_path / name,), output=tmp_path / "x.svg").run()
