"""Who started this process: a launcher, as a rank of a world, or a person, who wants a world."""

import os

from common.config import ConfigError

# Set by process managers for the ranks that they start; which of them depends on launcher and MPI.
_RANK_VARIABLES = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_OTHER_PROTOCOL = "try srun --mpi=pmi2 (MPICH) or --mpi=pmix"


def under_launcher() -> bool:
    """Whether mpirun, mpiexec or srun started this process as a rank. Raises ConfigError where srun did, but not so.

    Without a protocol for ranks every task would start a world of its own.
    """
    if any(name in os.environ for name in _RANK_VARIABLES):
        return True
    if (tasks := _number("SLURM_STEP_NUM_TASKS")) > 1:
        way_out = "; in a shell under srun: env -u SLURM_STEP_NUM_TASKS skipjoin"
        raise ConfigError(f"Slurm started {tasks} tasks, none of them as a rank: {_OTHER_PROTOCOL}{way_out}")
    return False


def hint(size: int) -> str:
    """What else to say of a world of `size`, if that is the wrong one."""
    if size > 1:
        return ""
    if (tasks := _number("SLURM_NTASKS")) > 1:
        return f"\nSlurm started {tasks} tasks that do not see each other: {_OTHER_PROTOCOL}"
    names = [name for name in _RANK_VARIABLES if name in os.environ]
    alone = " ".join(("env", *(f"-u {name}" for name in names), "skipjoin"))
    return f"\nBy {' and '.join(names)} in the environment a launcher started this; if none did: {alone}"


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0
