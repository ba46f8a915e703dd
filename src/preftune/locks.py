"""Locks: one command at a time uses a run folder or a file of samples.

A lock is a file that names its owner: host, boot, process id and the start time of the process. It works on file
systems without flock. The lock of a process that has ended is stale, and the next command takes it over:

    owner on this host      it is stale if no process with this id and start time runs
    owner on another host   it is stale if its owner has not renewed it for STALE_S; a thread renews it every RENEW_S

A command that has lost its lock, because its machine slept for longer than STALE_S, notices it in `Lock.require`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import RunError, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"  # of the lock of a folder, in this folder
RENEW_S, STALE_S = 30.0, 600.0
INCOMPLETE_S = 10.0  # a lock without an owner may be written at this moment; after this time, it is damaged

_held: dict[Path, Lock] = {}
_renewer: threading.Thread | None = None
_wake = threading.Event()


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that this process holds. `owner` is the content of its file."""

    path: Path
    owner: dict[str, Any]
    thread: threading.Thread = field(default_factory=threading.current_thread)

    def require(self) -> None:
        """Raise RunError if another command has taken over the lock."""
        if _held.get(self.path) is self and _read(self.path) in (self.owner, None):
            return
        raise RunError(
            "another preftune command has taken over, because this process did not renew its lock",
            where=str(self.path),
            why=f"the machine was suspended for more than {STALE_S / 60:.0f} minutes, or the file was changed",
            fix="let the other command finish, or stop it and rerun this one",
        )

    def release(self) -> None:
        """Delete the lock, unless another command has taken it over."""
        if _held.get(self.path) is not self:
            return
        del _held[self.path]
        if _read(self.path) == self.owner:
            with suppress(OSError):
                self.path.unlink()


def lock_folder(folder: Path) -> Lock:
    """Create the folder if needed, and lock it. Raises RunError if another command has locked it, and StorageError."""
    return _acquire(folder / NAME, f"the run folder {folder}")


@contextmanager
def locked_file(path: Path) -> Iterator[Lock]:
    """Lock an output file inside this context. Raises RunError if another command has locked it, and StorageError."""
    lock = _acquire(path.with_name(f"{path.name}{NAME}"), str(path))
    try:
        yield lock
    finally:
        lock.release()


def require_free(folder: Path) -> None:
    """Raise RunError if another command has locked the folder. Nothing is written, except to measure the age of a lock
    from another host."""
    path = (folder / NAME).absolute()
    _require_free(path, _read(path), f"the run folder {folder}")


def _acquire(path: Path, what: str) -> Lock:
    path = path.absolute()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _guarded(path.parent):
        before = _read(path)
        _require_free(path, before, what)
        lock = Lock(path, {**_this_process(), "token": secrets.token_hex(8), "since": time.strftime("%Y-%m-%d %H:%M")})
        _held[path] = lock
        try:
            with writing(path):
                if path.exists():
                    _remove(path, before)
                _create(path, lock.owner)
            _require_free(path, _read(path), what, lock)
        except BaseException:
            lock.release()
            raise
    _start_renewing()
    return lock


def _require_free(path: Path, owner: dict[str, Any] | None, what: str, own: Lock | None = None) -> None:
    """Raise RunError if `owner`, the content of a lock, belongs to a command that still runs."""
    if owner is None or (own and owner == own.owner):
        return
    mine = _held.get(path)
    if mine and owner == mine.owner:
        if mine.thread is threading.current_thread() or not mine.thread.is_alive():
            return  # the same thread has begun again after an error
    elif not _runs(owner, path):
        return
    command = owner.get("command") or "preftune"
    elsewhere = not _same_host(owner)
    fix = "wait until it ends, or stop it, and then rerun this command"
    if elsewhere:
        fix += f"; if that process no longer runs, delete {path}"
    raise RunError(
        f"another preftune command is using {what}",
        where=str(path.parent if path.name == NAME else path),
        why=f"process {owner.get('pid')} on host {owner.get('host')}, since {owner.get('since')}: {command}",
        fix=fix,
    )


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]),  # the rest may have passwords
    }


def _boot() -> str:
    """Return an id of the boot of this machine and of the container in which the process runs."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot, or None if the system does not tell."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _same_host(owner: dict[str, Any]) -> bool:
    return bool(owner.get("host") == socket.gethostname())


def _runs(owner: dict[str, Any], path: Path) -> bool:
    """Return whether the owner of a lock still runs."""
    if "pid" not in owner:
        return _age(path) < INCOMPLETE_S
    here, boot = _same_host(owner), owner.get("boot")
    kernel = str(boot).partition(" ")[0]
    if here and boot == _boot() and sys.platform != "win32":
        pid = owner.get("pid")
        if not isinstance(pid, int) or not _exists(pid):
            return False
        return owner.get("started") in (None, _start_of(pid))
    if here and kernel != _boot().partition(" ")[0]:
        return False  # the machine has been restarted
    return _age(path) < STALE_S


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def _age(path: Path) -> float:
    """Return the seconds since a lock was renewed, by the clock of its file system."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a lock, or None without one. A damaged one has no owner."""
    try:
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}
    with suppress(ValueError):
        owner = json.loads(content)
        return owner if isinstance(owner, dict) else {}
    return {}


def _create(path: Path, owner: dict[str, Any]) -> None:
    """Create the file of a lock with its content at once. Raises FileExistsError if another process was faster."""
    part = path.with_name(f"{path.name}.part-{owner['token']}")
    try:
        part.write_text(json.dumps(owner), encoding="utf-8")
        try:
            os.link(part, path)  # atomic, also on NFS
        except FileExistsError:
            return  # `_acquire` compares the content
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                json.dump(owner, file)
    finally:
        part.unlink(missing_ok=True)


def _remove(path: Path, stale: dict[str, Any] | None) -> None:
    """Remove a stale lock. If another process has just replaced it, put it back."""
    trash = path.with_name(f"{path.name}.part-{secrets.token_hex(8)}")
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return
    if _read(trash) != stale:
        with suppress(OSError):
            os.link(trash, path)
    trash.unlink(missing_ok=True)


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time acquire a lock in a folder, where the file system supports flock."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _start_renewing() -> None:
    global _renewer
    if _renewer is None or not _renewer.is_alive():
        _renewer = threading.Thread(target=_renew, name="preftune locks", daemon=True)
        _renewer.start()


def _renew() -> None:
    """Renew the locks that this process holds."""
    while True:
        _wake.wait(RENEW_S)
        _wake.clear()
        for lock in list(_held.values()):
            with suppress(OSError):
                if _read(lock.path) == lock.owner:
                    os.utime(lock.path)


def _release_all() -> None:
    for lock in list(_held.values()):
        lock.release()


def _forget_in_child() -> None:
    """A forked process does not hold the locks of its parent, and has none of its threads."""
    global _renewer, _wake
    _held.clear()
    _renewer, _wake = None, threading.Event()  # a thread of the parent may have used the event at this moment


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
