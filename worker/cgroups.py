"""What containers and batch systems leave this process: limits of Linux's control groups, version 1 and 2.

The machine's own numbers do not show them. A limit holds for a group and all below it, so the tightest one counts.
"""

import math
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def free_memory(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """Bytes that may still be allocated; infinite without a limit. Cached files count as free, as they make way."""
    groups = [
        (folder, "memory.max", "memory.current", ("inactive_file", "active_file"))
        for folder in _folders(root, membership, None)
    ] + [
        (folder, "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        for folder in _folders(root, membership, "memory")
    ]
    free = math.inf
    for folder, limit, used, cached in groups:
        try:
            left = _number(folder / limit) - _number(folder / used)
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the controller is not at work here
            continue
        free = min(free, max(0.0, left + sum(int(statistics.get(name, 0)) for name in cached)))
    return free


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """Processors that may be busy at a time, on average; infinite without a limit. Says nothing of which ones."""
    quota = math.inf
    for folder in _folders(root, membership, None):
        try:
            most, period = (folder / "cpu.max").read_text().split()
            quota = min(quota, float(most.replace("max", "inf")) / float(period))
        except (OSError, ValueError):
            continue
    for folder in _folders(root, membership, "cpu"):
        try:
            most_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        except (OSError, ValueError):
            continue
        if most_us > 0:  # -1: no limit
            quota = min(quota, most_us / period_us)
    return quota


def _number(path: Path) -> float:
    return float(path.read_text().strip().replace("max", "inf"))


def _folders(root: Path, membership: Path, controller: str | None) -> Iterator[Path]:
    """Of this process's group and all above it; `controller`: in the hierarchy of version 1 that has it.

    In a container the group's own path need not exist: its files are at the root.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in lines:
        if controller is None and number == "0":
            top = root
        elif controller in controllers.split(","):
            top = root / controllers if (root / controllers).is_dir() else root / str(controller)
        else:
            continue
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
