"""One command at a time has the lock. A lock whose owner has ended is taken over."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune import locks
from preftune.errors import RunError
from preftune.locks import NAME, Lock, lock_folder, locked_file, require_free


@pytest.fixture(autouse=True)
def _released() -> Any:
    yield
    locks._release_all()


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process, and return its process id after the process has ended."""
    pid = os.fork()
    if pid == 0:
        action()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def in_running_child(action: Callable[[], object], check: Callable[[int], None]) -> None:
    """Call `check` with the id of a forked process that has done `action` and still runs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        action()
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(read, 1)
        check(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_lock_of_a_running_process_is_an_error_that_names_it(tmp_path: Path) -> None:
    def check(pid: int) -> None:
        for attempt in (lock_folder, require_free):
            with pytest.raises(RunError, match="another preftune command is using the run folder") as error:
                attempt(tmp_path)
            assert error.value.exit_code == 5
            assert f"process {pid} on host" in error.value.why
            assert str(tmp_path) in error.value.where

    in_running_child(lambda: lock_folder(tmp_path) and None, check)
    lock_folder(tmp_path).release()  # the process has ended


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    pid = in_child(lambda: lock_folder(tmp_path) and None)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == pid
    require_free(tmp_path)
    lock = lock_folder(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_another_process_with_the_same_id_does_not_keep_a_lock(tmp_path: Path) -> None:
    in_child(lambda: lock_folder(tmp_path) and None)
    edit(tmp_path, pid=os.getpid(), started="1")
    lock_folder(tmp_path)


def test_a_lock_from_before_a_restart_of_the_machine_is_taken_over(tmp_path: Path) -> None:
    in_child(lambda: lock_folder(tmp_path) and None)
    edit(tmp_path, pid=os.getpid(), started=None, boot="another boot")
    lock_folder(tmp_path)


@pytest.mark.parametrize("age", [0, 2 * locks.STALE_S])
def test_a_lock_of_another_host_counts_until_it_is_not_renewed(tmp_path: Path, age: float) -> None:
    in_child(lambda: lock_folder(tmp_path) and None)
    edit(tmp_path, host="elsewhere")
    os.utime(tmp_path / NAME, (time.time() - age, time.time() - age))
    if age:
        lock_folder(tmp_path)
        return
    with pytest.raises(RunError, match="if that process no longer runs, delete"):
        lock_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_lock_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(RunError):
        lock_folder(tmp_path)  # it may be written at this moment
    os.utime(tmp_path / NAME, (0, 0))
    lock_folder(tmp_path)


def test_only_one_of_many_processes_gets_a_stale_lock(tmp_path: Path) -> None:
    in_child(lambda: lock_folder(tmp_path / "run") and None)
    pids, (read, write), (end, parent) = list[int](), os.pipe(), os.pipe()
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os.close(parent)
            try:
                lock_folder(tmp_path / "run")
                result = b"1"
            except RunError:
                result = b"0"
            os.write(write, result)
            os.read(end, 1)  # all have tried when the parent closes its end
            os._exit(0)
        pids.append(pid)
    results = b"".join(os.read(read, 1) for _ in pids)
    os.close(parent)
    for pid in pids:
        os.waitpid(pid, 0)
    for handle in (read, write, end):
        os.close(handle)
    assert sorted(results) == sorted(b"00000001")


def test_the_same_thread_can_begin_again_after_an_error(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    second = lock_folder(tmp_path)
    first.release()  # has no effect
    assert (tmp_path / NAME).is_file()
    with pytest.raises(RunError, match="has taken over"):
        first.require()
    second.require()


def test_another_thread_of_the_process_is_refused(tmp_path: Path) -> None:
    results: list[object] = []

    def other() -> None:
        try:
            results.append(lock_folder(tmp_path))
        except RunError as error:
            results.append(error)

    lock = lock_folder(tmp_path)
    for _ in range(2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        lock.release()
    assert [type(result) for result in results] == [RunError, Lock]


def test_a_lost_lock_is_an_error_for_its_former_owner(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    edit(tmp_path, token="another")
    with pytest.raises(RunError, match="has taken over"):
        lock.require()
    lock.release()
    assert (tmp_path / NAME).is_file()  # it belongs to the other command


def test_a_held_lock_is_renewed(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    os.utime(lock.path, (0, 0))
    locks._wake.set()  # the thread waits for RENEW_S
    deadline = time.monotonic() + 20
    while not lock.path.stat().st_mtime and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.path.stat().st_mtime > 0


def test_the_lock_of_a_file_is_beside_it_and_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.jsonl"

    def check(pid: int) -> None:
        with pytest.raises(RunError, match=r"is using .*samples\.jsonl"), locked_file(out):
            pass

    held = [locked_file(out)]

    def hold() -> None:
        held[0].__enter__()

    in_running_child(hold, check)
    with locked_file(out):
        assert (tmp_path / "new" / f"samples.jsonl{NAME}").is_file()
    assert list(out.parent.iterdir()) == []


def test_a_lock_works_without_hard_links_and_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(locks, "fcntl", None)

    def check(pid: int) -> None:
        with pytest.raises(RunError, match=f"process {pid}|is using"):
            lock_folder(tmp_path)

    in_running_child(lambda: lock_folder(tmp_path) and None, check)
    lock_folder(tmp_path)
