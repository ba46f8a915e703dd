"""The free memory of the machine. Nothing here imports torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def available_to_cpu() -> int:
    """Return the bytes that this process can still allocate in main memory."""
    limits = [_free_on_machine()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):  # limits of a container, in cgroup v2 and v1
        values = [_number(Path("/sys/fs/cgroup") / name) for name in (limit, used)]
        if values[0] is not None and values[1] is not None:
            limits.append(max(0, values[0] - values[1] + _reclaimable(used)))
    return min(limits)


def _reclaimable(used: str) -> int:
    """Return the bytes of a container's usage that are file cache and can be reclaimed."""
    path = (Path("/sys/fs/cgroup") / used).with_name("memory.stat")
    if not path.is_file():
        return 0
    stat = dict(line.split() for line in path.read_text().splitlines())
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _free_on_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if sys.platform != "win32" else 8 << 30
    return total // 2  # without /proc, the free memory is unknown


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
