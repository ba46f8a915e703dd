"""Limits of time and memory for chat templates, which are programs from the authors of models."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from preftune.errors import ModelError

Result = TypeVar("Result")
SECONDS = 10.0  # for one rendering; real templates need about a millisecond
BYTES = 2 * 2**30  # by which the process may grow during one rendering
CHECK_S = 0.25


class _Overtime(BaseException):
    """Raised in the middle of a template by `_watch`. No `except` clause of a library catches it."""


class _Deadline:
    """The time limit of the rendering in one thread. `fired`: _Overtime was sent to the thread."""

    def __init__(self, seconds: float) -> None:
        self.thread, self.at, self.fired = threading.get_ident(), time.monotonic() + seconds, False


_lock = threading.Lock()
_deadlines: list[_Deadline] = []
_watcher: threading.Thread | None = None
_earlier_limit: tuple[int, int] | None = None


def bounded(render: Callable[[], Result], where: object) -> Result:
    """Return `render()`. Raises ModelError if it takes longer than SECONDS or needs more memory than BYTES.

    The limit of memory is the operating system's for the address space of this process, on Linux only. `where` names
    the tokenizer.
    """
    deadline = _Deadline(SECONDS)
    try:
        _begin(deadline)
        try:
            return render()
        finally:
            _end(deadline)
    except _Overtime:
        _end(deadline)  # it may have been raised at the beginning of the call above
        what = f"the chat template ran for more than {SECONDS:g} s"
    except MemoryError:
        what = f"the chat template needed more than {BYTES / 2**30:g} GB of memory"
    fix = "set data.chat_template (--chat-template) to another .jinja file, or use another model"
    raise ModelError(what, where=str(where), why="it may be damaged, or made to stop programs", fix=fix)


def _begin(deadline: _Deadline) -> None:
    global _watcher, _earlier_limit
    with _lock:
        if not _deadlines:  # the first of several renderings at once
            _earlier_limit = _limit_memory()
        _deadlines.append(deadline)
        if _watcher is None or not _watcher.is_alive():  # also after a fork
            _watcher = threading.Thread(target=_watch, name="preftune templates", daemon=True)
            _watcher.start()


def _end(deadline: _Deadline) -> None:
    with _lock:
        if deadline not in _deadlines:
            return
        _deadlines.remove(deadline)
        if not _deadlines:
            _set_limit(_earlier_limit)
        if deadline.fired:  # and perhaps not raised yet
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(deadline.thread), None)


def _watch() -> None:
    """Send _Overtime to threads whose time is over."""
    while True:
        time.sleep(CHECK_S)
        with _lock:
            for deadline in _deadlines:
                if not deadline.fired and time.monotonic() > deadline.at:
                    deadline.fired = True
                    raised = ctypes.py_object(_Overtime)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(deadline.thread), raised)


def _limit_memory() -> tuple[int, int] | None:
    """Let the address space grow by at most BYTES. Return the earlier limit; None where none can be set."""
    if sys.platform != "linux":
        return None
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm", "rb") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None
    limit = size + BYTES
    if before[0] == resource.RLIM_INFINITY or limit < before[0]:
        _set_limit((limit, before[1]))
    return before


def _set_limit(limit: tuple[int, int] | None) -> None:
    if limit is not None:
        import resource

        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, limit)
