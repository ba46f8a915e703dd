"""The state of processes on this machine, from /proc."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

SUSPENDED_S = 5.0  # a rank that is suspended for longer counts as failed


def this_machine() -> str:
    """Return the host name, and what is unique to this machine and its process ids: containers may share a name."""
    unique = ""
    with suppress(OSError):
        unique = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {unique}"


def state_of(pid: int) -> str:
    """Return the state of a process as in `man proc`, for example R, S or T; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def is_suspended(pid: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP. False where /proc does not exist."""
    return state_of(pid) in ("T", "t")


def is_gone(pid: int) -> bool:
    """Return whether a process has ended. False where /proc does not exist."""
    return sys.platform.startswith("linux") and state_of(pid) in ("", "Z", "X")
