"""`skipjoin reproduce`: the paper's experiments, from nothing to a page with tables and pictures."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from common.config import ConfigError
from launch.lab.experiments.azure import Azure
from launch.lab.experiments.depth import Depth
from launch.lab.experiments.engine import Engine
from launch.lab.experiments.experiment import Data, Experiment
from launch.lab.experiments.memory import MemoryExperiment
from launch.lab.experiments.rates import Rates
from launch.lab.experiments.shapes import Shapes
from launch.lab.experiments.stationary import Stationary

_EXPERIMENTS: tuple[Experiment, ...] = (Rates(), Shapes(), MemoryExperiment(), Depth(), Stationary(), Azure(), Engine())


class Kept(msgspec.Struct, frozen=True):
    """An experiment's data as it is kept on disk, and where it comes from."""

    command: str
    commit: str
    machine: str
    date: str
    seconds: float
    data: Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduce:
    """Run the paper's experiments and write a page about them, with what the paper reports beside every figure.

    Each experiment is kept as JSON; one that is not run again is drawn from what is kept. Simulations give the same
    figures everywhere. `engine` runs real servers, takes about half an hour, and wants an idle machine.
    """

    only: str | None = None
    """Experiments to run, separated by commas. Default: all simulations. `none`: only write the page again."""
    seeds: int = 5
    """Number of seeds that each figure is the mean of."""
    folder: Path = Path("docs")
    """Where the page goes; data and pictures go into its folder reproduction."""

    def run(self) -> int:
        """Raises ConfigError."""
        for experiment in self._chosen():
            start = time.monotonic()
            data = experiment.measure(self.seeds)
            self._keep(experiment, data, time.monotonic() - start)
        page = self.folder / "reproduction.md"
        page.write_text(self._page())
        print(f"written: {page}")
        return 0

    def _chosen(self) -> list[Experiment]:
        simulated = [experiment for experiment in _EXPERIMENTS if experiment.name != "engine"]
        if self.only is None:
            return simulated
        named = {experiment.name: experiment for experiment in _EXPERIMENTS}
        names = [name.strip() for name in self.only.split(",") if name.strip() not in ("", "none")]
        if unknown := [name for name in names if name not in named]:
            raise ConfigError(f"no experiment {unknown[0]!r}; there are {', '.join(named)}")
        return [named[name] for name in names]

    def _keep(self, experiment: Experiment, data: Data, seconds: float) -> None:
        command = f"skipjoin reproduce --only {experiment.name} --seeds {self.seeds}"
        kept = Kept(command, _commit(), _machine(), time.strftime("%Y-%m-%d"), round(seconds), data)
        self._data(experiment).parent.mkdir(parents=True, exist_ok=True)
        self._data(experiment).write_bytes(msgspec.json.encode(kept) + b"\n")

    def _page(self) -> str:
        parts = [_prose("beginning")]
        for experiment in _EXPERIMENTS:
            path = self._data(experiment)
            if path.exists():
                kept = msgspec.json.decode(path.read_bytes(), type=Kept)
                pieces = experiment.render(kept.data, path.parent)
                source = f"`{kept.command}`, commit {kept.commit}, {kept.date}, {kept.machine}, {kept.seconds:.0f} s."
                parts.append(_prose(experiment.name).format_map(pieces) + f"\n*{source}*\n")
        return "\n".join(parts)

    def _data(self, experiment: Experiment) -> Path:
        return self.folder / "reproduction" / f"{experiment.name}.json"


def _commit() -> str:
    """The commit that is checked out, or `unknown` outside of a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _machine() -> str:
    """The processor and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


def _prose(name: str) -> str:
    return (resources.files("launch.lab.experiments") / f"{name}.md").read_text()
