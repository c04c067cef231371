"""How many threads a process can use: the cores that the system lets it run on.

Floor 0; standard library only. For engine plugins, which import `usable_cores` from `hostler`; any process.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Physical cores that this process may use, by its affinity mask and its CPU quota; at least 1.

    Hyper-threads count once: a second thread on a core makes matrix products slower.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        n_cores = len({_siblings(cpu) for cpu in allowed})
    else:
        n_cores = max(1, (os.cpu_count() or 1) // (2 if sys.platform == "win32" else 1))
    quota = _cpu_quota()
    return max(1, n_cores if quota is None else min(n_cores, math.ceil(quota)))


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the control group grants; None: no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # `max`: no limit
        return None
    return limit if limit > 0 else None
