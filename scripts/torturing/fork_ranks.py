"""Let `preftune launch` fork its ranks from a process that has imported everything, and let one of them raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from preftune import __main__ as entry
from preftune.errors import DataError
from preftune.ranks import launch

RAISES = ("train", "losses", "methods", "data", "scoring", "model", "ranks.work", "ranks.group", "ranks.checkpoint")


@dataclass(frozen=True, slots=True)
class Fault:
    """A rank raises an exception after some processor time: a DataError for code 3, else a RuntimeError."""

    rank: int
    cpu_s: float
    code: int


class Forked:
    """The part of subprocess.Popen that the launcher uses, for a command that runs in a forked process."""

    fault: Fault | None = None

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int | None,
        pass_fds: Sequence[int],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run_rank(arguments[arguments.index("preftune") + 1 :], env, stdout, pass_fds, self.fault)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def use_forks(fault: Fault | None = None) -> None:
    """Let the launcher in this process fork its ranks."""
    Forked.fault = fault
    setattr(launch, "subprocess", SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL))  # noqa: B010


def _run_rank(
    arguments: Sequence[str], env: Mapping[str, str], stdout: int | None, pass_fds: Sequence[int], fault: Fault | None
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in pass_fds:
                with suppress(OSError):
                    os.close(int(name))
        if stdout == subprocess.DEVNULL:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ.update(env)
        torch.set_num_threads(1)
        sys.argv = ["preftune", *arguments]
        if fault and fault.rank == int(env["RANK"]):
            raise_after(fault)
        entry.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        entry.flush()
        os._exit(code)


def raise_after(fault: Fault) -> None:
    """Let the first call of a function in RAISES, after some processor time, raise an exception."""
    text = f"a fault of rank {fault.rank}"
    prefixes = tuple(f"preftune.{name}" for name in RAISES)

    def hook(frame: Any, event: str, _: object) -> None:
        if event == "call" and str(frame.f_globals.get("__name__")).startswith(prefixes):
            sys.setprofile(None)
            raise DataError(text) if fault.code == 3 else RuntimeError(text)

    signal.signal(signal.SIGPROF, lambda *_: sys.setprofile(hook))
    signal.setitimer(signal.ITIMER_PROF, max(fault.cpu_s, 1e-3))
