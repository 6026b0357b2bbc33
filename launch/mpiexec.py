"""Starting a world on this host with the MPI runtime in the environment, and leaving nothing of it behind."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psutil

from common.config import ConfigError

# What `skipjoin` on the command line is. -P: a common.py or launch/ where somebody happens to be is not ours.
SKIPJOIN = (sys.executable, "-P", "-m", "launch")
_LOOK_S = 0.5
_KILL_AFTER_S = 20.0  # after a forced end was asked for
_PR_SET_PDEATHSIG = 1
_SEGMENT = re.compile(r" (/dev/shm/\S+)")


def find_mpiexec() -> Path:
    """The mpiexec of this Python environment, else the one on PATH. Raises ConfigError."""
    beside = Path(sysconfig.get_path("scripts")) / "mpiexec"
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if found is None:
        raise ConfigError(
            "no mpiexec found: pip install mpich for an embedded one, "
            "or start it under your cluster's: mpirun -n 2 skipjoin serve"
        )
    return Path(found)


def run_world(size: int, arguments: Sequence[str]) -> int:
    """Run `python -m launch ARGUMENTS` as a world of `size` ranks; returns its exit status.

    The first SIGINT or SIGTERM drains the server, the second forces its end.
    """
    environment = os.environ | _oversubscription()
    command = [str(find_mpiexec()), "-n", str(size), *SKIPJOIN, *arguments]
    # In a session of its own, so that the terminal's Ctrl-C reaches the world only through here, once.
    child = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509 - no threads yet
    world = _World(child)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: world.pass_signal())
    return world.wait()


class _World:
    """A running mpiexec, and what it must not leave behind."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child
        self._signals = 0
        self._left_s = _KILL_AFTER_S
        self._members: set[psutil.Process] = set()
        self._segments: set[Path] = set()

    def pass_signal(self) -> None:
        self._signals += 1
        self._note_members()
        # SIGUSR1 whatever came: Open MPI's mpiexec has all ranks dead a second after SIGTERM, and MPICH's kills at once
        # on a second SIGINT. Both pass this one on, and leave the end to the ranks.
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGUSR1)

    def wait(self) -> int:
        """Until all of it is gone, by force if two signals did not help in time."""
        looks = 0
        while (status := self._poll()) is None:
            looks += 1
            if looks in (4, 20, 100):  # members come up within seconds
                self._note_members()
            if self._signals > 1 and (left_s := self._left_s - _LOOK_S) >= 0:
                self._left_s = left_s
            elif self._signals > 1:
                self._kill()
        self._kill()
        for segment in self._segments:
            segment.unlink(missing_ok=True)
        return status if status >= 0 else 128 - status

    def _poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(_LOOK_S)
        return None

    def _note_members(self) -> None:
        """Remember every process of the world and the shared-memory segments that it has mapped."""
        with contextlib.suppress(psutil.Error):
            self._members.update(psutil.Process(self._child.pid).children(recursive=True))
        for member in self._members:
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{member.pid}/maps").read_text()
                self._segments.update(Path(name) for name in _SEGMENT.findall(maps) if _is_mpi(name))

    def _kill(self) -> None:
        for member in self._members:
            with contextlib.suppress(psutil.Error):
                member.kill()  # psutil compares creation times: never another process under a reused id
        if self._child.poll() is None:
            self._child.kill()


def _is_mpi(name: str) -> bool:
    return Path(name).name.startswith(("mpich_shm", "vader_segment", "sm_segment", "psm3"))


def _oversubscription() -> dict[str, str]:
    """Open MPI refuses more ranks than cores, and root, unless told otherwise; MPICH needs nothing."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", **allowed}


def _die_with_parent() -> None:
    """Ask the kernel for a SIGTERM should our process be killed: mpiexec must not outlive it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
