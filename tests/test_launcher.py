"""What the environment says of who started a process."""

import pytest

from common.config import ConfigError
from launch.launcher import hint, under_launcher

NAMES = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_a_person_wants_a_world_in_a_job_of_slurm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not under_launcher()
    monkeypatch.setenv("SLURM_NTASKS", "3")  # of the whole job, in which a script runs once
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not under_launcher()


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_rank_is_told_by_its_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert under_launcher()


def test_tasks_that_are_no_ranks_do_not_each_start_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(ConfigError, match=r"Slurm started 3 tasks, none of them as a rank: try srun --mpi=pmi2"):
        under_launcher()


def test_ranks_that_do_not_see_each_other_are_hinted_at_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert "Slurm started 3 tasks that do not see each other" in hint(1)
    assert hint(3) == ""


def test_who_inherited_a_ranks_environment_is_told_how_to_be_rid_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_FD", "5")
    assert hint(1).endswith("if none did: env -u PMI_RANK -u PMI_FD skipjoin")
