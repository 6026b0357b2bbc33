"""The command line: `skipjoin serve | profile | bench`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from common.config import Config, ConfigError
from common.model_files import ModelError
from launch.mpiexec import run_world, under_launcher
from launch.rank import run_rank


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve a model over the OpenAI API.

    Starts its own MPI world of one gateway and --pipeline-parallel stages; under mpirun, mpiexec or srun each rank
    takes its role there.
    """

    config: tyro.conf.OmitArgPrefixes[Config]

    def run(self, arguments: Sequence[str]) -> int:
        if under_launcher():
            return run_rank(self.config)
        return run_world(self.config.pipeline_parallel + 1, arguments)


Command = Annotated[Serve, tyro.conf.subcommand("serve")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return tyro.cli(Command, args=arguments, prog="skipjoin").run(arguments)
    except (ConfigError, ModelError) as error:
        print(f"skipjoin: {error}", file=sys.stderr)
        return 2
