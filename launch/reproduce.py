"""`skipjoin reproduce`: the paper's experiments, from nothing to a page with tables and pictures."""

from dataclasses import dataclass
from pathlib import Path

from common.config import ConfigError
from launch.lab.experiments.azure import Azure
from launch.lab.experiments.depth import Depth
from launch.lab.experiments.engine import POLICIES, STRATEGIES
from launch.lab.experiments.engine_simulator import EngineSimulator
from launch.lab.experiments.experiment import Experiment
from launch.lab.experiments.memory import MemoryExperiment
from launch.lab.experiments.rates import Rates
from launch.lab.experiments.shapes import Shapes
from launch.lab.experiments.stationary import Stationary
from launch.lab.page import Page

EXPERIMENTS: tuple[Experiment, ...] = (
    Rates(),
    Shapes(),
    MemoryExperiment(),
    Depth(),
    Stationary(),
    Azure(),
    POLICIES,
    EngineSimulator(),
    STRATEGIES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduce:
    """Run the paper's experiments and write a page about them, with what the paper reports beside every figure.

    Each experiment is kept as JSON; one that is not run again is drawn from what is kept. Simulations give the same
    figures everywhere. `engine`, `engine-simulator` and `engine-memory` run real servers, take ten to twenty minutes
    each, and want an idle machine.
    """

    only: str | None = None
    """Experiments to run, separated by commas. Default: all simulations. `none`: only write the page again."""
    seeds: int = 5
    """Number of seeds that each figure is the mean of."""
    folder: Path = Path("docs")
    """Where the page goes; data and pictures go into its folder reproduction."""

    def run(self) -> int:
        """Raises ConfigError."""
        if self.seeds < 1:
            raise ConfigError("--seeds must be at least 1")
        page = Page(self.folder, EXPERIMENTS)
        for experiment in choose(self.only):
            page.measure(experiment, self.seeds)
        page.write()
        print(f"written: {page.path}")
        return 0


def choose(names: str | None) -> list[Experiment]:
    """The experiments that are named, separated by commas; None: all simulations. Raises ConfigError."""
    named = {experiment.name: experiment for experiment in EXPERIMENTS}
    if names is None:
        return [experiment for experiment in EXPERIMENTS if not experiment.name.startswith("engine")]
    wanted = [name.strip() for name in names.split(",") if name.strip() != "none"]
    if unknown := [name for name in wanted if name not in named]:
        raise ConfigError(f"no experiment {unknown[0]!r}; there are {', '.join(named)}")
    return [named[name] for name in wanted]
