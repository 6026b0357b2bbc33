"""Recordings: where every job was at every moment, one JSON line for each change. For timelines and for science.

The engine and the simulator keep the same recordings. Knows neither; it looks at jobs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from gateway.scheduling.job import Job, Residence

Place = Literal["runs", "cold", "device", "offloading", "host", "uploading", "ended"]


class Change(msgspec.Struct, frozen=True):
    """From `at` on the job is at `place`, on `level`."""

    at: float  # s on the clock of the run
    job: int
    place: Place
    level: int
    tokens: int  # emitted so far


_PLACES: dict[Residence, Place] = {
    Residence.NOWHERE: "cold",
    Residence.DEVICE: "device",
    Residence.OFFLOADING: "offloading",
    Residence.HOST: "host",
    Residence.UPLOADING: "uploading",
}


class Recorder:
    """Writes changes to a file as they are noticed. Costs a look at every active job in every turn."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = path.open("wb")
        self._last: dict[int, tuple[Place, int]] = {}
        self._encode = msgspec.json.Encoder().encode

    def look(self, jobs: Iterable[Job], now: float) -> None:
        """Note who has moved since the last look."""
        for job in jobs:
            place: Place = "runs" if job.in_flight else _PLACES[job.residence]
            if self._last.get(job.id) != (place, job.level):
                self._last[job.id] = (place, job.level)
                self._write(Change(now, job.id, place, job.level, len(job.output)))

    def end(self, job: Job, now: float) -> None:
        self._last.pop(job.id, None)
        self._write(Change(now, job.id, "ended", job.level, len(job.output)))

    def close(self) -> None:
        self._file.close()

    def _write(self, change: Change) -> None:
        self._file.write(self._encode(change) + b"\n")


def read_recording(path: Path) -> list[Change]:
    """All changes of a recording, in their order. Raises OSError, or msgspec.DecodeError for another kind of file."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1  # the last line may be cut, by a full disk or by the end of the server
    return msgspec.json.Decoder(Change).decode_lines(data[:whole] or data)
