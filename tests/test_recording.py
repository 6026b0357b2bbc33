from pathlib import Path

from fakes import generation

from gateway.recording import Change, Recorder, read_recording
from gateway.scheduling.job import Job


def test_only_changes_are_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")
    job = Job(3, generation(4, 5), arrival=0.0)
    recorder.look([job], 1.0)
    recorder.look([job], 2.0)
    job.in_flight = 1
    recorder.look([job], 3.0)
    job.level = 2
    job.output.append(9)
    recorder.look([job], 4.0)
    recorder.end(job, 5.0)
    recorder.close()
    assert read_recording(tmp_path / "run.jsonl") == [
        Change(1.0, 3, "cold", 0, 0),
        Change(3.0, 3, "runs", 0, 0),
        Change(4.0, 3, "runs", 2, 1),
        Change(5.0, 3, "ended", 2, 1),
    ]


def test_what_an_unended_run_wrote_is_there_when_it_is_closed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")
    recorder.look([Job(0, generation(1, 1), arrival=0.0)], 0.0)
    recorder.close()
    assert [change.place for change in read_recording(tmp_path / "run.jsonl")] == ["cold"]


def test_a_recording_that_ends_within_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")
    recorder.look([Job(id_, generation(1, 1), arrival=0.0) for id_ in range(3)], 0.0)
    recorder.close()
    whole = (tmp_path / "run.jsonl").read_bytes()
    (tmp_path / "run.jsonl").write_bytes(whole[:-5])
    assert [change.job for change in read_recording(tmp_path / "run.jsonl")] == [0, 1]
