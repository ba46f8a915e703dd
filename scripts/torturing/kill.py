"""SIGKILL at random instants, or at every call that changes a file. The same command must then end with equal files."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from torturing import calls, forks
from torturing.results import Result
from torturing.world import COMMANDS, Command, World, difference, files_of

CHAIN = 3  # kills of one folder at most
WEIGHTS = {"sft": 3, "dpo": 4, "reward": 3, "ppo": 3, "iterate": 3, "sample": 3}  # how often a command is drawn


def draw_command(draw: random.Random) -> Command:
    """Return a random command. Those that take longest to restore are drawn more often."""
    return draw.choices(COMMANDS, [WEIGHTS.get(command.name, 1) for command in COMMANDS])[0]


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Kill a command up to CHAIN times at random instants of its processor time, and rerun it."""
    command = draw_command(draw)
    expected = world.whole(command)
    folder = world.folder(f"kill-{number}")
    results = []
    for _ in range(draw.randint(1, CHAIN)):
        killed = kill_after(command, folder, draw.random() * cpu_seconds(world, command))
        results.append(Result(command.name, "killed" if killed else "finished before", number=number))
        if not killed:
            break
    failure = rerun(command, folder, expected)
    if not failure:
        world.remove(folder)
    return [*results[:-1], Result(command.name, results[-1].outcome, failure, number)]


def kill_after(command: Command, folder: Path, cpu_s: float) -> bool:
    """Run a command and kill it after some processor time. Return whether it was killed before it finished."""
    child = forks.start(command.arguments, folder)
    while child.ended_code() is None:
        if child.cpu_s() >= cpu_s:
            child.signal(signal.SIGKILL)
            return child.wait().code == -signal.SIGKILL
        time.sleep(forks.POLL_S / 4)
    return False


def cpu_seconds(world: World, command: Command) -> float:
    """Return the processor time of an undisturbed command."""
    world.whole(command)
    return world.cpu_seconds[command.name]


def rerun(command: Command, folder: Path, expected: dict[str, bytes], all_checkpoints: bool = True) -> str:
    """Run a command to its end, and return what is wrong with it or its files, or "".

    Without `all_checkpoints`, only those are compared that an undisturbed command has, too; and only those samples of
    an evaluation. A full disk is reported, and the run continues without them.
    """
    done = forks.run(command.arguments, folder)
    if done.code:
        return f"the rerun ended with code {done.code}: {done.output.strip()[-300:]}"
    files = files_of(folder)
    if not all_checkpoints:
        saved = ("/checkpoints/", "/samples/")
        optional = {name for name in {*expected, *files} if any(part in f"/{name}" for part in saved)}
        names = ({*expected, *files} - optional) | ({*expected} & {*files})
        expected = {name: data for name, data in expected.items() if name in names}
        files = {name: data for name, data in files.items() if name in names}
    return difference(expected, files)


def every_call(world: World, command: Command, first: int, step: int) -> Iterator[Result]:
    """Kill a command at its calls `first`, `first` + `step`, ..., each in a new folder, and rerun it."""
    expected = world.whole(command)
    for call in range(first, number_of_calls(world, command) + 1, step):
        folder = world.folder(f"call-{call}")
        ended = forks.run(command.arguments, folder, calls.kill_at(call))
        failure = ended.crashed if ended.code not in (-signal.SIGKILL, 0) else ""
        failure = failure or rerun(command, folder, expected)
        yield Result(f"{command.name}, every call", "killed", failure and f"call {call}: {failure}", call)
        if not failure:
            world.remove(folder)


@cache
def _calls(root: Path, command: Command) -> int:
    folder = root / "count"
    folder.mkdir()
    file = root / "calls"
    forks.run(command.arguments, folder, calls.count_to(file))
    World(root, 0).remove(folder)
    return len(file.read_bytes())


def number_of_calls(world: World, command: Command) -> int:
    """Return how many calls of a command change a file in its folder."""
    return _calls(world.root, command)
