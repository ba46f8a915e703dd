"""Kill, suspend or stop one of two ranks, or let it raise. The command then resumes on one to four ranks."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load

from torturing import forks
from torturing.fork_ranks import Fault, use_forks
from torturing.results import Result
from torturing.signals import catches
from torturing.world import COMMON, TRAINING, Command, World, difference, files_of

RANKS = 2
KINDS = ("kill", "suspend", "raise", "stop")
METHODS = ("sft", "dpo", "reward")
WAYS = ("whole", "sharded")  # how the ranks hold the weights
LIMIT_S = 15.0  # by the clock, from the fault to the end of all processes
NEW_PROCESSES = 9  # each case whose number it divides starts new processes, the others fork
HANGS_S = 150.0  # a command that runs for longer by the clock hangs
WORKING = 0.85  # share of the processor time that ranks spend before the final model is written
IMPORT_S = 4.0  # of processor time, before a new process begins to work
LOSS, RELATIVE, ABSOLUTE, WEIGHTS = 3e-6, 2e-4, 2e-5, 5e-5  # differences between numbers of ranks, docs/do/ranks.md
ADDED = {"dpo": "monitor: null\n", "sft": "samples: 0\n"}  # split weights sample slowly
CAUSES = {
    "kill": r"rank {rank} was killed by SIGKILL|the process of rank {rank} is gone",
    "suspend": r"rank {rank} was suspended",
    "raise": r"a fault of rank {rank}|layout or the precision of rank \d differs",
    "stop": r"stopped(:| after step| before)",
}


@dataclass(frozen=True, slots=True)
class Broken:
    """A launched command that was broken: how it ended, seconds from the fault to the end, and ranks that remained."""

    ended: forks.Ended
    seconds: float
    remaining: int


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Break one of two ranks at a random instant, and rerun the command on a random number of ranks."""
    kind, method, way = KINDS[number % len(KINDS)], draw.choice(METHODS), draw.choice(WAYS)
    command = launched(method, RANKS, way)
    expected = world.undisturbed.get(command.name) or _undisturbed(world, command)
    is_new = kind != "raise" and number % NEW_PROCESSES == 0
    moment = draw.random() * (WORKING * world.cpu_seconds[command.name] + IMPORT_S * RANKS * is_new)
    rank, to_launcher, code = draw.randrange(RANKS), draw.random() < 0.5, draw.choice((3, 1))
    ranks, other_way = draw.randint(1, 4), draw.choice(WAYS)
    folder = world.folder(f"ranks-{number}")
    fault = Fault(rank, moment / RANKS, code) if kind == "raise" else None
    target = -1 if kind == "stop" and to_launcher else rank
    broken = break_one(command, folder, kind, target, moment, fault, is_new)
    finished = broken.ended.code == 0
    failure = judged(broken, kind, rank, code)
    if not failure:
        failure = rerun(folder, launched(method, ranks, other_way if ranks != RANKS else way), ranks, expected)
    if not failure:
        world.remove(folder)
    where = "launcher" if target < 0 else "rank"
    outcome = "finished" if finished else f"code {broken.ended.code}"
    row = f"{kind} {'a ' if target >= 0 else 'the '}{where}, {way}" + ", new processes" * is_new
    return [Result(row, outcome, failure, number)]


def launched(method: str, ranks: int, way: str) -> Command:
    """Return a training command on several ranks, or on one process."""
    own = (method, f"../inputs/ranks-{method}.yaml")
    before = ("launch", "--ranks", str(ranks), "--weights", way) if ranks > 1 else ()
    return Command(f"{method} on {ranks}, {way}", (*before, *own))


def _undisturbed(world: World, command: Command) -> dict[str, bytes]:
    """Write the configs, run a command on forked ranks, and return its files."""
    for method in METHODS:
        text = COMMON + "data: {train: ../inputs/pairs.jsonl, eval: 0.25}\n" + TRAINING
        text = text.replace("max_steps: 4", "max_steps: 8, epochs: 8") + ADDED.get(method, "")
        (world.root / "inputs" / f"ranks-{method}.yaml").write_text(text)
    folder = world.folder(f"whole-{command.name.replace(' ', '-')}")
    done = forks.run(command.arguments, folder, use_forks)
    if done.code:
        raise RuntimeError(f"{command.name} failed undisturbed with code {done.code}:\n{done.output}")
    world.undisturbed[command.name], world.cpu_seconds[command.name] = files_of(folder), done.cpu_s
    return world.undisturbed[command.name]


def break_one(
    command: Command, folder: Path, kind: str, target: int, moment: float, fault: Fault | None, is_new: bool
) -> Broken:
    """Launch a command and break a rank, or the launcher (-1), when the ranks have used `moment` of processor time."""
    numbers = {"kill": signal.SIGKILL, "suspend": signal.SIGSTOP, "stop": signal.SIGTERM}
    child = forks.start(command.arguments, folder, None if is_new else lambda: use_forks(fault))
    ranks: list[int] = []
    sent = 0.0
    while child.ended_code() is None:
        ranks = ranks if len(ranks) == RANKS else children(child.pid)
        if kind == "raise":
            sent = sent or (time.monotonic() if "a fault of rank" in child.output.read_text() else 0.0)
        elif not sent and len(ranks) == RANKS and sum(map(cpu_s, ranks)) >= moment:
            pid = ranks[target] if target >= 0 else child.pid
            if kind != "stop" or catches(pid, signal.SIGTERM):
                sent = time.monotonic()
                with suppress(ProcessLookupError):
                    os.kill(pid, numbers[kind])
        now = time.monotonic()
        if now - child.began > HANGS_S or (sent and now - sent > 2 * LIMIT_S):
            child.signal(signal.SIGKILL)
        time.sleep(forks.POLL_S)
    ended = child.wait()
    seconds = time.monotonic() - sent if sent else 0.0
    remaining = [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    for pid in remaining:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Broken(ended, seconds, len(remaining))


def judged(broken: Broken, kind: str, rank: int, raised: int) -> str:
    """Return how the end of a command differs from what docs/do/ranks.md says, or ""."""
    ended, seconds = broken.ended, broken.seconds
    if broken.remaining:
        return f"{broken.remaining} ranks remained"
    if seconds > LIMIT_S:
        return f"ended {seconds:.1f} s after the fault"
    if ended.code == 0:
        return ""
    # the reading of data and models has its own codes, and so have ranks whose tests of the model disagree
    codes = {"kill": [8], "suspend": [8], "raise": [raised, 2, 3, 4, 5], "stop": [75]}[kind]
    if ended.code not in codes:
        return f"exit code {ended.code}, not {codes[0]}: {ended.output.strip()[-400:]}"
    # an exception in the test of packed batches is no failure; it is shown as the reason for the layout
    shown = re.sub(r"(?m)^attention: .*$", "", ended.output)
    times = len(re.findall(CAUSES[kind].format(rank=rank), shown))
    return "" if times == 1 else f"the cause is named {times} times: {ended.output.strip()[-600:]}"


def rerun(folder: Path, command: Command, ranks: int, expected: Mapping[str, bytes]) -> str:
    """Run a command to its end on `ranks` ranks, and return how its files differ from the expected ones, or ""."""
    done = forks.run(command.arguments, folder, use_forks if ranks > 1 else None)
    if done.code:
        return f"the rerun of {command.name} ended with code {done.code}: {done.output.strip()[-400:]}"
    files = files_of(folder)
    if ranks == RANKS:
        return difference(expected, files)
    problem = compare_metrics(*(lines_of(data["run/metrics.jsonl"]) for data in (expected, files)))
    return (problem and f"{command.name}: {problem}") or compare_weights(expected, files)


def lines_of(data: bytes) -> list[dict[str, float]]:
    """Return the lines of metrics, of which `files_of` has made a list without times."""
    lines: list[dict[str, float]] = json.loads(data)
    return lines


def compare_metrics(expected: Sequence[Mapping[str, float]], actual: Sequence[Mapping[str, float]]) -> str:
    """Return how metrics differ by more than rounding, or ""."""
    if [set(line) for line in expected] != [set(line) for line in actual]:
        return "names of metrics, or their number, differ"
    for before, now in zip(expected, actual, strict=True):
        for name, value in before.items():
            other = now[name]
            bound = LOSS if name == "loss" else ABSOLUTE + RELATIVE * abs(value) if isinstance(value, float) else 0.0
            same = other == value if not bound else math.isclose(other, value, rel_tol=0, abs_tol=bound)
            if not same:
                return f"{name} of step {before['step']} is {other}, not {value}"
    return ""


def compare_weights(expected: Mapping[str, bytes], actual: Mapping[str, bytes]) -> str:
    """Return how final weights differ by more than rounding, or ""."""
    names = [name for name in expected if name.startswith("run/final/") and name.endswith(".safetensors")]
    for name in names:
        first, second = load(expected[name]), load(actual[name])
        if first.keys() != second.keys():
            return f"names of weights in {name} differ"
        largest = max(float((first[key].double() - second[key].double()).abs().max()) for key in first)
        if not largest <= WEIGHTS:
            return f"weights in {name} differ by {largest:.1e}"
    return "" if names else "no final weights"


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, the oldest first."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def cpu_s(pid: int) -> float:
    """Return the processor time of a process; 0 if it has ended."""
    with suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)
    return 0.0
