"""The command line: a subcommand for each thing that one does with Skipjoin."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from common.channel import Channel
from common.config import Config, ConfigError
from common.model_files import ModelError
from launch.bench.chat import ChatBench
from launch.bench.chunks import ChunksBench
from launch.bench.gpu import GpuBench
from launch.bench.iteration import IterationBench
from launch.bench.load import LoadBench
from launch.bench.overhead import OverheadBench
from launch.bench.peers.bench import PeersBench
from launch.bench.preemption import PreemptionBench
from launch.bench.quality import QualityBench
from launch.bench.scheduler import SchedulerBench
from launch.key import Key
from launch.launcher import under_launcher
from launch.mpiexec import run_world
from launch.rank import run_rank
from launch.reproduce import Reproduce
from launch.simulate import Simulate
from launch.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve(Config):
    """Serve a model over the OpenAI API.

    Starts its own MPI world, of one gateway and --pipeline-parallel stages. Under mpirun, mpiexec or srun each rank
    takes its role there: rank 0 the gateway, then the stages, the rest spares.
    """

    def as_gateway(self, channel: Channel) -> int:
        from launch.gateway_rank import run_gateway  # noqa: PLC0415 - a worker imports no HTTP

        return run_gateway(self, channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Config):
    """Show what iterations cost on this machine, and the levels that prompts join; --profile measure refreshes it."""

    def as_gateway(self, channel: Channel) -> int:
        from launch.profile_rank import run_profile  # noqa: PLC0415 - a worker imports no scheduler

        return run_profile(self, channel)


Bench = (
    Annotated[ChatBench, tyro.conf.subcommand("chat")]
    | Annotated[ChunksBench, tyro.conf.subcommand("chunks")]
    | Annotated[GpuBench, tyro.conf.subcommand("gpu")]
    | Annotated[IterationBench, tyro.conf.subcommand("iteration")]
    | Annotated[LoadBench, tyro.conf.subcommand("load")]
    | Annotated[OverheadBench, tyro.conf.subcommand("overhead")]
    | Annotated[PeersBench, tyro.conf.subcommand("peers")]
    | Annotated[PreemptionBench, tyro.conf.subcommand("preemption")]
    | Annotated[QualityBench, tyro.conf.subcommand("quality")]
    | Annotated[SchedulerBench, tyro.conf.subcommand("scheduler")]
)


@dataclass(frozen=True, slots=True)
class Benches:
    """Measure a server, or Skipjoin on this machine; the last line of output is JSON.

    `skipjoin bench URL` is short for `skipjoin bench load URL`.
    """

    bench: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Bench]]


Command = (
    Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Profile, tyro.conf.subcommand("profile")]
    | Annotated[Key, tyro.conf.subcommand("key")]
    | Annotated[Benches, tyro.conf.subcommand("bench")]
    | Annotated[Simulate, tyro.conf.subcommand("simulate")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Timeline, tyro.conf.subcommand("timeline")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = parse(arguments)
        if isinstance(command, Benches):
            return command.bench.run()
        if isinstance(command, Key | Reproduce | Simulate | Timeline):
            return command.run()
        if under_launcher():
            return run_rank(command, command.as_gateway)
        return run_world(command.pipeline_parallel + 1, arguments)
    except (ConfigError, ModelError) as error:
        print(f"skipjoin: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str]) -> Command:
    """What a command line asks for; leaves with status 2 where it is none. `bench URL` means `bench load URL`."""
    if len(arguments) > 1 and arguments[0] == "bench" and "://" in arguments[1]:
        arguments = ["bench", "load", *arguments[1:]]
    return tyro.cli(Command, args=arguments, prog="skipjoin", description=__doc__)
