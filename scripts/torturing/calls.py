"""Do something at a certain call of a forked process that changes its folder: kill it, or let the call fail.

Python announces the calls to audit hooks: open for writing, rename, link, remove, mkdir, rmdir, truncate. os.fsync is
wrapped. A hook that raises OSError lets the call fail.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TAKES_SPACE = ("open", "os.rename", "os.link", "os.mkdir", "fsync")
CHANGES = (*TAKES_SPACE, "os.remove", "os.rmdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

Action = Callable[[int, str], object]  # takes the number of the call, from 1, and its kind


def watch(action: Action) -> None:
    """Call `action` before each call that changes a file in the working folder, for the rest of this process."""
    folder, number = os.getcwd(), [0]

    def announce(kind: str, path: Any) -> None:
        if isinstance(path, int):
            target = os.readlink(f"/proc/self/fd/{path}")
        elif isinstance(path, str | bytes | os.PathLike):
            target = os.path.abspath(os.fsdecode(path))
        else:
            return
        if target.startswith(folder):
            number[0] += 1
            action(number[0], kind)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or int(arguments[2] or 0) & WRITING):
            announce(event, arguments[0])

    fsync = os.fsync

    def announced_fsync(handle: Any) -> None:
        announce("fsync", handle if isinstance(handle, int) else handle.fileno())
        fsync(handle)

    setattr(os, "fsync", announced_fsync)  # noqa: B010
    sys.addaudithook(hook)


def kill_at(call: int) -> Callable[[], None]:
    """Return what lets the process kill itself before a call."""

    def action(number: int, _kind: str) -> None:
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: watch(action)


def fail_at(first: int, count: int, error: int = errno.ENOSPC) -> Callable[[], None]:
    """Return what lets `count` calls that take space fail, from the call `first`."""

    def action(number: int, kind: str) -> None:
        if first <= number < first + count and kind in TAKES_SPACE:
            raise OSError(error, os.strerror(error))

    return lambda: watch(action)


def count_to(file: Path) -> Callable[[], None]:
    """Return what writes the number of calls to a file, by its length."""

    def prepare() -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        watch(lambda *_: os.write(handle, b"."))

    return prepare
