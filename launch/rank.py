"""One rank of a world: asks MPI who it is, and becomes gateway, worker or spare."""

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from common.channel import IDLE_PAUSE_S, Channel, growing_pauses, receive
from common.config import Config, ConfigError
from common.mpi import MpiChannel, World
from common.records import Stop, decode_order
from common.topology import GATEWAY_RANK, role
from launch.launcher import hint

_EXIT_FAILED = 1
_LOST_S = 5.0  # in which all have to leave a world that ends with an error

log = logging.getLogger(__name__)

Place = tuple[str, list[int]]  # hostname, and the cores that this process may use


def run_rank(config: Config, as_gateway: Callable[[Channel], int]) -> int:
    """Join the world, play the role, leave. Returns the exit status."""
    world = World.join(msgspec.json.encode((socket.gethostname(), sorted(os.sched_getaffinity(0)))))
    _log_to_stderr(config, world.rank)
    try:
        mine = role(world.rank, world.size, config.pipeline_parallel)
    except ConfigError as error:
        if world.rank == GATEWAY_RANK:
            print(f"skipjoin: {error}{hint(world.size)}", file=sys.stderr, flush=True)
        world.leave()
        return 2
    channel = MpiChannel(world)
    leave_within_s = None  # The gateway decides.
    if mine == "gateway":
        try:
            status = as_gateway(channel)
        except Exception:
            # Its engine may still run, and be within MPI, which serves one thread at a time: no leaving in order.
            log.exception("the gateway failed")
            world.abort(_EXIT_FAILED)
        # A stage may be loading still, and hear of the end when it has; one that is lost may never hear of it.
        leave_within_s = _LOST_S if status else config.start_timeout
    else:
        # The gateway decides when to leave: a launcher sends the same signal to every rank.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        status = _worker(config, channel, world) if mine == "worker" else _spare(channel)
    world.leave(status, leave_within_s)
    return status


def _worker(config: Config, channel: Channel, world: World) -> int:
    # OpenMP threads that spin for milliseconds after each loop keep the gateway off the cores of a small host.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from worker.device import HostShare  # noqa: PLC0415 - the gateway imports no torch
    from worker.loop import serve_stage  # noqa: PLC0415

    places = [msgspec.json.decode(note, type=Place) for note in world.notes]
    workers = [(host, frozenset(cores)) for host, cores in places[1 : config.pipeline_parallel + 1]]
    gc.freeze()  # what was imported lives as long as the process
    index = world.rank - 1
    return serve_stage(channel, config, index, share=HostShare.of(index, workers))


def _spare(channel: Channel) -> int:
    """Idle until the world ends; a spare has no work yet."""
    while True:
        message = receive(channel, 60.0, growing_pauses(10 * IDLE_PAUSE_S))
        if message is not None and isinstance(decode_order(message[1]), Stop):
            return 0


def _log_to_stderr(config: Config, rank: int) -> None:
    who = "gateway" if rank == GATEWAY_RANK else f"rank {rank}"
    logging.basicConfig(level=config.log_level.upper(), format=f"%(asctime)s {who} %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx2", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
