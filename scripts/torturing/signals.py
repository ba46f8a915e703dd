"""TERM, INT and HUP at random instants: the command ends with 75, or finishes, in time. The rerun ends equal."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from torturing import forks
from torturing.kill import cpu_seconds, draw_command, rerun
from torturing.results import Result
from torturing.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT_S = 2.0  # of processor time, from the signal to the end


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Send a signal to a command at a random instant of its processor time, and rerun it."""
    command, sent = draw_command(draw), draw.choice(SIGNALS)
    expected = world.whole(command)
    folder = world.folder(f"signal-{number}")
    moment = draw.random() * cpu_seconds(world, command)
    child = forks.start(command.arguments, folder)
    while child.ended_code() is None and (child.cpu_s() < moment or not catches(child.pid, sent)):
        time.sleep(forks.POLL_S / 4)
    before = child.cpu_s()
    child.signal(sent)
    done = child.wait()
    row = f"{command.name}, {sent.name}"
    failure = done.crashed
    if not failure and done.code not in (0, 75):
        failure = f"exit code {done.code}: {done.output.strip()[-300:]}"
    if not failure and done.cpu_s - before > LIMIT_S:
        failure = f"ended {done.cpu_s - before:.1f} s of processor time after the signal"
    failure = failure or rerun(command, folder, expected)
    if not failure:
        world.remove(folder)
    return [Result(row, "stopped" if done.code == 75 else "finished", failure, number)]


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(masks and masks[0] >> (number - 1) & 1)
