"""How many processors this process may use: its affinity, and its control group's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus(cgroup_root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. `os.cpu_count()` would be the machine's, and an engine sized for it fights its own quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroup_root, own)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(root: Path, own: Path) -> float | None:
    """The tightest quota from this process's group up to the root, in processors."""
    quotas = [parse_cpu_max(_read(folder / "cpu.max")) for folder in _groups(root, own)]
    quotas.append(parse_cfs(_read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path, own: Path) -> list[Path]:
    unified = next((line[3:] for line in _read(own).splitlines() if line.startswith("0::")), "/")
    folder = root / unified.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def parse_cpu_max(text: str) -> float | None:
    """cgroup v2 `cpu.max`: "<quota|max> <period>", both in microseconds."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def parse_cfs(quota: str, period: str) -> float | None:
    """cgroup v1: a quota of -1 is none."""
    quota, period = quota.strip(), period.strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
