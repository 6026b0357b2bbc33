"""The page of experiments: data kept as JSON, each with its origin, and the Markdown that is made of them."""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import msgspec

from launch.lab.experiments.experiment import Data, Experiment


class Kept(msgspec.Struct, frozen=True):
    """An experiment's data as it is kept on disk, and where it comes from."""

    command: str
    commit: str
    machine: str
    date: str
    seconds: float
    data: Data


class Page:
    """`reproduction.md` in a folder, and a folder `reproduction` beside it for data and pictures."""

    def __init__(self, folder: Path, experiments: Sequence[Experiment]) -> None:
        self._folder = folder
        self._experiments = experiments

    @property
    def path(self) -> Path:
        return self._folder / "reproduction.md"

    def measure(self, experiment: Experiment, seeds: int) -> None:
        """Run an experiment and keep its data."""
        start = time.monotonic()
        data = experiment.measure(seeds)
        command = f"skipjoin reproduce --only {experiment.name} --seeds {seeds}"
        seconds = round(time.monotonic() - start)
        kept = Kept(command, commit(), machine(), time.strftime("%Y-%m-%d"), seconds, data)
        path = self._data(experiment)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(kept) + b"\n")

    def write(self) -> None:
        """Draw and describe all experiments whose data are kept."""
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = [_prose("beginning")]
        for experiment in self._experiments:
            path = self._data(experiment)
            if path.exists():
                kept = msgspec.json.decode(path.read_bytes(), type=Kept)
                pieces = experiment.render(kept.data, path.parent)
                source = f"`{kept.command}`, commit {kept.commit}, {kept.date}, {kept.machine}, {kept.seconds:.0f} s."
                prose = _prose(experiment.name).format_map(pieces).replace("](", "](reproduction/")
                parts.append(f"{prose}\n*{source}*\n")
        self.path.write_text("\n".join(parts))

    def _data(self, experiment: Experiment) -> Path:
        return self._folder / "reproduction" / f"{experiment.name}.json"


def _prose(name: str) -> str:
    return (resources.files("launch.lab.experiments") / f"{name}.md").read_text()


def commit() -> str:
    """The commit that is checked out, or `unknown` outside of a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def machine() -> str:
    """The processor and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' if cores > 1 else ''} of {model}"
