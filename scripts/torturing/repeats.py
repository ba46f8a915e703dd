"""The same run again on two threads, and how much a run with default settings loses when it is killed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import torch

from preftune.train import saving
from torturing import forks
from torturing.kill import rerun
from torturing.results import Result
from torturing.world import COMMON, Command, World, difference, files_of

THREADS = 2
WIDE = Command("dpo, two threads", ("dpo", "../inputs/wide.yaml", "--quiet"))
LONG = Command("dpo, default checkpoints", ("dpo", "../inputs/long.yaml", "--quiet"))
STEPS, KILLED_AT = 1500, 0.8
RUN_S, ALLOWED_S = 600.0, 180.0  # a run of ten minutes may lose three
DATA = "data: {train: ../inputs/pairs.jsonl}\nmonitor: null\n"


def repeat(world: World, _: random.Random, number: int) -> list[Result]:
    """Repeat a run whose arrays are large enough for two threads, and compare all files with those of the first one."""
    if WIDE.name not in world.undisturbed:
        from tests.conftest import make_model, make_tokenizer

        make_model(hidden_size=128, intermediate_size=512).save_pretrained(world.root / "inputs" / "wide")
        make_tokenizer().save_pretrained(world.root / "inputs" / "wide")
        wide = COMMON.replace("inputs/model", "inputs/wide") + DATA
        text = f"{wide}batch: {{pairs: 8}}\ntrain: {{max_steps: 20, epochs: 20}}\n"
        (world.root / "inputs" / "wide.yaml").write_text(text)
        folder = world.folder("repeat-first")
        first, files = _on_two_threads(folder)
        if first.crashed:
            world.remove(folder)
            return [Result(WIDE.name, "the first run failed", first.crashed, number)]
        world.undisturbed[WIDE.name] = files
    folder = world.folder(f"repeat-{number}")
    done, files = _on_two_threads(folder)
    failure = done.crashed or difference(world.undisturbed[WIDE.name], files)
    if not failure:
        world.remove(folder)
    return [Result(WIDE.name, "different" if failure else "identical", failure, number)]


def _on_two_threads(folder: Path) -> tuple[forks.Ended, dict[str, bytes]]:
    done = forks.run(WIDE.arguments, folder, lambda: torch.set_num_threads(THREADS))
    return done, files_of(folder)


def lost(world: World, _: random.Random, number: int) -> list[Result]:
    """Kill a run at 80 % whose clock for checkpoints is faster by as much as the run is shorter than ten minutes."""
    text = COMMON + DATA + f"batch: {{pairs: 2}}\ntrain: {{max_steps: {STEPS}, epochs: {STEPS}, log_every: 1}}\n"
    (world.root / "inputs" / "long.yaml").write_text(text)
    began = time.monotonic()
    expected = world.whole(LONG)
    if LONG.name not in world.seconds:
        world.seconds[LONG.name] = time.monotonic() - began
    interval_s = saving.INTERVAL_S * world.seconds[LONG.name] / RUN_S
    folder = world.folder(f"lost-{number}")
    child = forks.start(LONG.arguments, folder, lambda: setattr(saving, "INTERVAL_S", interval_s))
    while child.ended_code() is None and _steps(folder) < KILLED_AT * STEPS:
        time.sleep(forks.POLL_S)
    child.signal(signal.SIGKILL)
    child.wait()
    saved = max((int(path.name[-8:]) for path in (folder / "run" / "checkpoints").glob("step-????????")), default=0)
    lost_s = (_steps(folder) - saved) / STEPS * RUN_S
    failure = "" if lost_s <= ALLOWED_S else f"{lost_s:.0f} s of {RUN_S:.0f} s are lost"
    failure = failure or rerun(LONG, folder, expected, all_checkpoints=False)
    if not failure:
        world.remove(folder)
    return [Result(LONG.name, f"lost {lost_s:.0f} s of {RUN_S:.0f} s", failure, number)]


def _steps(folder: Path) -> int:
    """Return the number of steps in the metrics of a run."""
    path = folder / "run" / "metrics.jsonl"
    return path.read_bytes().count(b'"split": "train"') if path.is_file() else 0
