"""Notice when another rank fails, is killed or stops responding, and end this process with the first cause.

Each rank has a thread with a connection to a key-value store. A rank that fails writes the cause; the first cause
counts, and only that rank prints it. Without this, the other ranks would wait in a collective until it times out.

Once per second, each rank looks whether the others are alive: those on its machine by the state of their processes, so
that a busy machine is not mistaken for a failure, and those on other machines by a sign of life that they write.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from preftune.errors import RanksError, Stopped
from preftune.ranks.environment import LAUNCHED, Place
from preftune.ranks.processes import SUSPENDED_S, is_gone, is_suspended, this_machine
from preftune.stop import caused

BEAT_S = 1.0  # between two signs of life
SILENCE_S = 10.0  # without one from a different machine; the rank then counts as failed
GRACE_S = 2.0  # in which a rank may end with its exception after another one has failed
FIRST_S = 0.5  # ranks other than 0 wait before they claim a failure, because all may raise the same exception
LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "gloo", "NCCL", "Store")


@dataclass(frozen=True, slots=True)
class Failure:
    """The first failure of a run: the rank, its exit code, and what happened."""

    rank: int
    code: int
    what: str


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an exception means that a different rank is gone, rather than that this one failed."""
    return type(error).__module__.startswith(("builtins", "torch")) and (
        isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)
    )


class Watch:
    """The thread of one rank. `store` is a connection to the store that no other thread uses."""

    def __init__(self, store: Any, place: Place) -> None:
        self._store, self._place = store, place
        self._launcher = int(os.environ.get(LAUNCHED, 0))
        self._lock, self._done = threading.Lock(), threading.Event()
        self._machine = this_machine()
        self._finishing = False
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._suspended: dict[int, float] = {}
        self._beat()  # before any work, so that the others notice it if this process ends within a second
        self._thread = threading.Thread(target=self._run, name="preftune ranks", daemon=True)
        self._thread.start()

    def finishing(self) -> None:
        """Note that this rank has finished its work, and that others may have ended."""
        self._finishing = True

    def close(self) -> None:
        """Stop watching, because the work is complete on all ranks."""
        self._done.set()
        self._thread.join(2 * BEAT_S)

    def fail(self, error: BaseException, report: Callable[[], int]) -> NoReturn:
        """End this process after an exception. `report` prints it and returns its exit code.

        It is called only if this is the first failure. After a lost connection, the cause is another rank's.
        """
        if is_lost_connection(error):
            failure = self._cause(SILENCE_S + 2 * BEAT_S)
            if failure is None:
                why = str(error).splitlines()[0] if str(error) else ""
                lost = RanksError("the connection to another rank was lost", where=self._name, why=why)
                failure = self._claim(Failure(self._place.rank, lost.exit_code, str(lost)))
                if failure.rank == self._place.rank:
                    _to_stderr(str(lost))
            self._leave(failure.code)
        if self._place.rank:
            time.sleep(FIRST_S)
        code = Stopped.exit_code if caused(error) else getattr(error, "exit_code", 1)
        failure = self._claim(Failure(self._place.rank, code, f"{type(error).__name__}: {error}"))
        if failure.rank == self._place.rank:
            if self._place.rank:
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            if self._place.rank and code != Stopped.exit_code:
                _to_stderr(f"{self._name} failed:")
            code = report()
            self._set("failed", json.dumps(asdict(Failure(self._place.rank, code, failure.what))))
            if not self._place.rank:
                time.sleep(2 * BEAT_S)  # the store may be in this process, and the others must read the cause
            self._leave(code)
        self._leave(failure.code)

    @property
    def _name(self) -> str:
        return f"rank {self._place.rank} of {self._place.world}"

    def _leave(self, code: int) -> NoReturn:
        """End at once: the connections to ranks that are gone would block an orderly exit."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

    def _set(self, key: str, value: str) -> None:
        with self._lock, suppress(Exception):
            self._store.set(key, value)

    def _get(self, key: str) -> bytes | None:
        """Return a value without waiting for it, or None."""
        return self._store.get(key) if self._store.check([key]) else None

    def _claim(self, failure: Failure) -> Failure:
        """Record a failure unless there is one. Return the first."""
        with self._lock:
            try:
                return _failure(self._store.compare_set("failed", "", json.dumps(asdict(failure)))) or failure
            except Exception:  # the store is gone with its process
                return failure

    def _cause(self, seconds: float) -> Failure | None:
        """Return the first failure, which may be recorded within `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with self._lock:
                try:
                    failure = _failure(self._get("failed"))
                except Exception:
                    failure = _store_is_gone()
            if failure:
                return failure
            time.sleep(BEAT_S / 4)
        return None

    def _run(self) -> None:
        last = time.monotonic()
        while not self._done.wait(BEAT_S):
            now = time.monotonic()
            if now - last > 3 * BEAT_S:  # this process was suspended; the others may have been, too
                self._beats.clear()
                self._suspended.clear()
            last = now
            if self._launcher and os.getppid() != self._launcher:
                self._leave(RanksError.exit_code)
            with self._lock:
                try:
                    failure = self._exchange(now)
                except Exception:
                    failure = None if self._finishing else _store_is_gone()
            if failure and not self._done.wait(GRACE_S):
                with self._lock, suppress(Exception):
                    failure = _failure(self._get("failed")) or failure  # with the code of its report
                self._leave(failure.code)

    def _exchange(self, now: float) -> Failure | None:
        """Write a sign of life, and return the failure of a rank if there is one."""
        self._beat()
        failure = _failure(self._get("failed"))
        for other in range(self._place.world):
            beat = self._get(f"beat/{other}")
            if failure or beat is None or other == self._place.rank:
                continue
            what = self._trouble(other, beat, now)
            if what:
                error = RanksError(what, where=f"{self._place.world} ranks", fix="rerun the same command to resume")
                own = json.dumps(asdict(Failure(other, error.exit_code, str(error))))
                stored = self._store.compare_set("failed", "", own)
                failure = _failure(stored)
                if stored.decode() == own and not self._launcher:  # the launcher reports processes on its machine
                    _to_stderr(str(error))
        return failure

    def _beat(self) -> None:
        """Write a sign of life."""
        self._store.set(f"beat/{self._place.rank}", f"{self._machine} {os.getpid()} {time.time()}")

    def _trouble(self, other: int, beat: bytes, now: float) -> str:
        """Return what is wrong with another rank, or ""."""
        machine, pid, _ = beat.decode().rsplit(" ", 2)
        if machine == self._machine:
            if is_gone(int(pid)) and not self._finishing:
                return f"the process of rank {other} is gone"
            since = self._suspended.setdefault(other, now)
            if not is_suspended(int(pid)):
                del self._suspended[other]
            return f"rank {other} was suspended" if now - since > SUSPENDED_S else ""
        if beat != self._beats.get(other, (b"", 0.0))[0]:
            self._beats[other] = (beat, now)
        silent = now - self._beats[other][1] > SILENCE_S
        return f"rank {other} on {machine.partition(' ')[0]} has not responded for {SILENCE_S:g} s" if silent else ""


def _failure(value: bytes | None) -> Failure | None:
    return Failure(**json.loads(value)) if value else None


def _store_is_gone() -> Failure:
    return Failure(0, RanksError.exit_code, "the process with the store of the ranks is gone")


def _to_stderr(text: str) -> None:
    """Print a line, also where `sys.stderr` is silent."""
    os.write(2, f"{text}\n".encode())
