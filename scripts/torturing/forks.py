"""Run preftune commands in forked processes, so that a case does not pay for the import of torch.

The parent has imported everything and computes on one thread: a forked process cannot use the threads of its parent.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NoReturn

import torch

import preftune
from preftune import __main__ as entry
from preftune.cli.main import run as cli
from preftune.report.figures.curves import TRAINING, curves
from preftune.train import full_disk

OUTPUT = "output.txt"  # stdout and stderr of the last process, beside the case's files
LIMIT_S = 30.0  # of processor time, after which a process counts as hanging
WAITS = 8  # times this limit by the clock: a busy machine runs other processes
HUNG = -1000  # the code of a process that was killed because it hung
POLL_S = 0.004

Prepare = Callable[[], object]  # is called in the forked process, before the command


@dataclass(frozen=True, slots=True)
class Ended:
    """The exit code of a process, negative if a signal ended it; what it printed; and its times."""

    code: int
    output: str
    seconds: float
    cpu_s: float
    folder: Path

    @property
    def crashed(self) -> str:
        """Return how the process broke the promise of a clean end, or ""."""
        if self.code == HUNG:
            return f"hung: killed after {self.seconds:.0f} s"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        for text in ("Traceback (most recent call last)", "internal error"):
            if text in self.output:
                return f"{text}: {self.output.strip().splitlines()[-1][:200]}"
        return "exit code 1" if self.code == 1 else ""


@dataclass(slots=True)
class Child:
    """A running command. Its output is in the file `output`; `code` is its exit code once it has ended."""

    pid: int
    folder: Path
    output: Path
    began: float
    code: int | None = None
    cpu: float = 0.0

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.code is None:
            os.kill(self.pid, number)

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        if self.code is None:
            with suppress(OSError):
                self.cpu = time.clock_gettime((~self.pid << 3) | 2)  # the clock of another process
        return self.cpu

    def ended_code(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        return self.code

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Wait until the process ends. It is killed after `limit_s` of processor time, or WAITS times as long."""
        while self.ended_code() is None:
            waited = time.monotonic() - self.began
            if self.cpu_s() > limit_s or waited > WAITS * limit_s:
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = HUNG
                break
            time.sleep(POLL_S)
        assert self.code is not None
        text = self.output.read_text(encoding="utf-8", errors="surrogateescape")
        return Ended(self.code, text, time.monotonic() - self.began, self.cpu, self.folder)


def warm_up(commands: Iterable[Sequence[str]], folder: Path) -> None:
    """Import all modules of preftune, run some commands here, and draw a figure. Compute on one thread from now on."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for module in pkgutil.walk_packages(preftune.__path__, "preftune."):
        if module.name != "preftune.__main__":
            importlib.import_module(module.name)
    before = Path.cwd()
    os.chdir(folder)
    for arguments in commands:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            cli(arguments)
    os.chdir(before)
    curves(TRAINING, {"": [{"split": "train", "step": 1, "loss": 1.0}]})
    gc.collect()
    gc.freeze()


def start(arguments: Sequence[str], folder: Path, prepare: Prepare | None = None, name: str = OUTPUT) -> Child:
    """Start `preftune ARGUMENTS` in a folder. Its output is in a file beside it that ends with `name`."""
    output = folder.parent / f"{folder.name}.{name}"
    output.write_bytes(b"")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(list(arguments), folder, output, prepare)
    return Child(pid, folder, output, began)


def run(arguments: Sequence[str], folder: Path, prepare: Prepare | None = None, limit_s: float = LIMIT_S) -> Ended:
    """Run `preftune ARGUMENTS` in a folder until it ends."""
    return start(arguments, folder, prepare).wait(limit_s)


def _run(arguments: list[str], folder: Path, output: Path, prepare: Prepare | None) -> NoReturn:
    """Run a command in the forked process, and end it."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (handle, 1), (handle, 2)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = (open(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
        sys.argv = ["preftune", *arguments]
        os.environ["PREFTUNE_CACHE"] = str(folder / "cache")
        full_disk.RETRY_S = 0.05
        if prepare is not None:
            prepare()
        entry.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            entry.flush()
        os._exit(code)


def limit_file_size(size: int) -> None:
    """Let every file of this process have at most `size` bytes. A write beyond it fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
