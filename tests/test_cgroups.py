"""Limits of control groups, as containers and batch systems set them."""

import math
from pathlib import Path

import pytest

from worker.cgroups import cpu_quota, free_memory


class Groups:
    """A file system of control groups."""

    def __init__(self, path: Path) -> None:
        self.root, self.membership = path / "cgroup", path / "membership"
        self.root.mkdir()

    def belong(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def set(self, group: str, **files: str) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")

    @property
    def free(self) -> float:
        return free_memory(self.root, self.membership)

    @property
    def quota(self) -> float:
        return cpu_quota(self.root, self.membership)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_the_tightest_limit_of_the_groups_above_a_process_counts(groups: Groups) -> None:
    groups.belong("0::/slurm/job")
    groups.set("slurm", memory__max="1000", memory__current="400", memory__stat="anon 400", cpu__max="300000 100000")
    groups.set("slurm/job", memory__max="max", memory__current="300", memory__stat="anon 300", cpu__max="max 100000")
    assert (groups.free, groups.quota) == (600, 3)
    groups.set("slurm/job", memory__max="500", cpu__max="150000 100000")
    assert (groups.free, groups.quota) == (200, 1.5)


def test_cached_files_make_way_for_what_is_allocated(groups: Groups) -> None:
    groups.belong("0::/")
    groups.set(
        "", memory__max="1000", memory__current="990", memory__stat="file 700\ninactive_file 500\nactive_file 100"
    )
    assert groups.free == 610


def test_version_1_has_a_hierarchy_for_each_controller(groups: Groups) -> None:
    groups.belong("4:memory:/slurm/job", "2:cpu,cpuacct:/slurm", "0::/")
    stat = "inactive_file 1\ntotal_inactive_file 50\ntotal_active_file 25"
    no_limit = "9223372036854771712"
    groups.set("memory/slurm", memory__limit_in_bytes="1000", memory__usage_in_bytes="400", memory__stat=stat)
    groups.set("memory/slurm/job", memory__limit_in_bytes=no_limit, memory__usage_in_bytes="300", memory__stat=stat)
    groups.set("cpu,cpuacct/slurm", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    groups.set("cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert (groups.free, groups.quota) == (675, 2.5)


def test_a_container_sees_its_own_group_at_the_root(groups: Groups) -> None:
    groups.belong("4:memory:/docker/4e8c", "0::/docker/4e8c")
    groups.set("", cpu__max="50000 100000")
    groups.set("memory", memory__limit_in_bytes="800", memory__usage_in_bytes="300", memory__stat="cache 0")
    assert (groups.free, groups.quota) == (500, 0.5)


def test_more_than_is_allowed_leaves_nothing(groups: Groups) -> None:
    groups.belong("0::/")
    groups.set("", memory__max="1000", memory__current="1200", memory__stat="anon 1200")
    assert groups.free == 0


def test_without_groups_there_is_no_limit(groups: Groups) -> None:
    assert (groups.free, groups.quota) == (math.inf, math.inf)
    groups.belong("0::/nowhere", "3:cpuset:/")
    assert (groups.free, groups.quota) == (math.inf, math.inf)
