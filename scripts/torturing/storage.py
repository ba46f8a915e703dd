"""Disks that are full or cannot be written, and two processes on one folder. No training that has begun may end."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from torturing import calls, forks
from torturing.kill import draw_command, number_of_calls, rerun
from torturing.results import Result
from torturing.world import Command, World

TRAINING = ("sft", "dpo", "reward", "ppo", "iterate")
SMALL = 8 * 2**20  # bytes of the small file system; a command needs less
FREED_AFTER_S = 1.0  # of processor time, or BUSY times as long by the clock
BUSY = 5

Fault = Callable[[World, Command, Path, random.Random], Result]


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Run a command on a faulty disk, and rerun it on a good one."""
    command = draw_command(draw)
    expected = world.whole(command)
    folder = world.folder(f"storage-{number}")
    fault = draw.choice(FAULTS)
    with ExitStack() as stack:
        if fault is full_file_system:
            mount(folder)
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        result = fault(world, command, folder, draw)
        failure = result.failure or rerun(command, folder, expected, all_checkpoints=False)
    if not failure:
        world.remove(folder)
    return [Result(result.row, result.outcome, failure and f"{command.name}: {failure}", number)]


def two_case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Let two processes use one folder, and rerun the command."""
    command = draw_command(draw)
    expected = world.whole(command)
    folder = world.folder(f"two-{number}")
    result = two(world, command, folder, draw)
    failure = result.failure or rerun(command, folder, expected)
    if not failure:
        world.remove(folder)
    return [Result(command.name, result.outcome, failure, number)]


def judged(row: str, command: Command, done: forks.Ended, may_end: bool = False) -> Result:
    """Judge how a command ended. Training that has begun must finish; other commands may end with code 7."""
    failure = done.crashed
    if not failure and done.code not in (0, 7):
        failure = f"exit code {done.code}: {done.output.strip()[-300:]}"
    has_begun = (Path(done.folder) / "run" / "checkpoints").is_dir()
    if not failure and done.code == 7 and command.name in TRAINING and has_begun and not may_end:
        failure = f"training that had begun was ended: {done.output.strip()[-300:]}"
    return Result(row, "finished" if done.code == 0 else "refused", failure)


def full_once(world: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """The disk is full at one call that takes space."""
    call = draw.randint(1, number_of_calls(world, command))
    return judged("disk full at a call", command, forks.run(command.arguments, folder, calls.fail_at(call, 1)))


def full_for_long(world: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """The disk is full for many calls."""
    call, count = draw.randint(1, number_of_calls(world, command)), draw.randint(2, 20)
    done = forks.run(command.arguments, folder, calls.fail_at(call, count))
    return judged("disk full at several calls", command, done)


def too_large(world: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """No file can be larger than a limit. Libraries in other languages meet it, too. It is not a full disk."""
    largest = max(map(len, world.whole(command).values()))
    size = draw.randint(0, largest)
    done = forks.run(command.arguments, folder, lambda: forks.limit_file_size(size))
    return judged("limit of the file size", command, done, may_end=True)


def read_only(world: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """Nothing can be written any more, from some call on."""
    call = draw.choice([1, draw.randint(1, number_of_calls(world, command))])
    error = draw.choice([errno.EROFS, errno.EACCES, errno.EIO])
    done = forks.run(command.arguments, folder, calls.fail_at(call, 10**9, error))
    return judged("read-only folder", command, done, may_end=True)


def two(_: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """Two processes use one folder. One of them finishes; the other one reports it, or has nothing left to do."""
    first = forks.start(command.arguments, folder)
    wait_s = draw.random()
    while first.ended_code() is None and first.cpu_s() < wait_s:
        time.sleep(forks.POLL_S)
    second = forks.start(command.arguments, folder, name="second")
    ends = [first.wait(), second.wait()]
    second.output.unlink()
    failure = next((done.crashed for done in ends if done.crashed), "")
    codes = sorted(done.code for done in ends)
    if not failure and (codes[0] != 0 or codes[1] not in (0, 5)):
        failure = f"exit codes {codes}: {ends[0].output.strip()[-200:]} / {ends[1].output.strip()[-200:]}"
    return Result("two processes", "one refused" if codes[1] else "both finished", failure)


def full_file_system(_: World, command: Command, folder: Path, draw: random.Random) -> Result:
    """A small file system is full after a random number of bytes, until some of them are freed."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(SMALL - draw.randrange(4096, 2**19)))
    began = time.monotonic()
    child = forks.start(command.arguments, folder)
    while child.ended_code() is None and child.cpu_s() < FREED_AFTER_S:
        if time.monotonic() - began > BUSY * FREED_AFTER_S:
            break
        time.sleep(forks.POLL_S)
    ballast.unlink()
    return judged("full file system", command, child.wait())


def mount(folder: Path) -> None:
    """Mount a small file system in memory."""
    size = SMALL + 2**16
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(folder)], check=True)


FAULTS: list[Fault] = [full_once, full_once, full_for_long, too_large, read_only, two]
if os.geteuid() == 0:  # else it cannot be mounted
    FAULTS.append(full_file_system)
