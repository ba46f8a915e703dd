"""The same kills and the same damage for preftune, TRL's DPOTrainer and the Trainer of transformers.

Each peer runs as its documentation says: with `resume_from_checkpoint=True` once there is a checkpoint. A peer that
ends with other weights or with an error is an outcome, not a failure of the campaign. Needs `pip install trl`.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from torturing import forks
from torturing.corrupt import DAMAGES
from torturing.results import Result
from torturing.world import COMMON, World

STEPS, SAVE_EVERY, PAIRS = 12, 2, 2
KILLS_OF_FIVE = 2  # cases of five that kill; the others damage a file of a checkpoint
FINAL = "final"  # the folder of the final model, inside that of the run
KINDS = ("flip", "truncate", "delete", "zero")
MODULES = ("datasets", "transformers.trainer", "trl.trainer.dpo_trainer")

Training = Callable[[Path], int | None]  # trains or resumes inside a folder


def case(world: World, _: random.Random, number: int) -> list[Result]:
    """Kill each system at a random share of its time, or damage a file of its newest checkpoint, and rerun it."""
    fault = killed if number % 5 < KILLS_OF_FIVE else damaged
    results = []
    for name, training in SYSTEMS.items():
        whole = world.undisturbed.get(name) or undisturbed(world, name, training)
        folder = world.folder(f"peers-{number}")
        what = fault(world, name, folder, random.Random(f"peers {world.seed} {number}"))
        done = start(training, folder).wait()
        outcome = "error" if done.code else "same weights" if weights_of(folder) == whole else "other weights"
        mine = name == "preftune" and outcome != "same weights"
        failure = f"{what}: {outcome}, code {done.code}: {done.output.strip()[-300:]}" if mine else ""
        results.append(Result(f"{name}, {fault.__name__}", outcome, failure, number))
        if not failure:
            world.remove(folder)
    return results


def undisturbed(world: World, name: str, training: Training) -> dict[str, bytes]:
    """Run a system without a fault, once per campaign, and return its weights."""
    for module in MODULES:
        importlib.import_module(module)
    folder = world.folder(f"whole-{name.split()[0]}")
    done = start(training, folder).wait()
    if done.code:
        raise RuntimeError(f"{name} failed undisturbed:\n{done.output}")
    world.cpu_seconds[name] = done.cpu_s
    world.undisturbed[name] = weights_of(folder)
    stopped = world.folder(f"state-{name.split()[0]}")
    shutil.copytree(folder, stopped, dirs_exist_ok=True)
    for path in [stopped / "run" / FINAL, *checkpoints(stopped)[(STEPS - 1) // SAVE_EVERY :]]:
        shutil.rmtree(path)  # as if it had been killed before the last checkpoint
    (stopped / "run" / "manifest.json").unlink(missing_ok=True)
    return world.undisturbed[name]


def killed(world: World, name: str, folder: Path, draw: random.Random) -> str:
    """Kill a run after a random share of the processor time that an undisturbed one takes."""
    moment = draw.random() * world.cpu_seconds[name]
    child = start(SYSTEMS[name], folder)
    while child.ended_code() is None and child.cpu_s() < moment:
        time.sleep(forks.POLL_S)
    child.signal(signal.SIGKILL)
    child.wait()
    return f"killed after {moment:.2f} s"


def damaged(world: World, name: str, folder: Path, draw: random.Random) -> str:
    """Damage one file of the newest checkpoint of a stopped run."""
    shutil.copytree(world.root / f"state-{name.split()[0]}", folder, dirs_exist_ok=True)
    files = sorted(path for path in checkpoints(folder)[-1].iterdir() if path.is_file() and path.suffix != ".md")
    path, kind = draw.choice(files), draw.choice(KINDS)
    DAMAGES[kind](path, draw)
    return f"{kind} of {path.name}"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    paths = [*(folder / "run").glob("checkpoint-*"), *(folder / "run" / "checkpoints").glob("step-*")]
    return sorted((path for path in paths if path.is_dir()), key=lambda path: int(path.name.rpartition("-")[2]))


def weights_of(folder: Path) -> dict[str, bytes]:
    """Return the files of the final weights."""
    return {path.name: path.read_bytes() for path in sorted((folder / "run" / FINAL).glob("*.safetensors"))}


def start(training: Training, folder: Path) -> forks.Child:
    """Start a system in a forked process."""
    output = folder.with_name(f"{folder.name}.{forks.OUTPUT}")
    output.write_bytes(b"")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(training, folder, output)
    return forks.Child(pid, folder, output, began)


def _run(training: Training, folder: Path, output: Path) -> NoReturn:
    code = 1
    try:
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target in (1, 2):
            os.dup2(handle, target)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        code = int(training(folder) or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def preftune(folder: Path) -> int:
    """Run `preftune dpo`."""
    from preftune.cli.main import run as cli

    os.environ["PREFTUNE_CACHE"] = str(folder / "cache")
    config = COMMON + f"data: {{train: ../inputs/pairs.jsonl}}\nmonitor: null\nbatch: {{pairs: {PAIRS}}}\n"
    config += f"train: {{max_steps: {STEPS}, epochs: {STEPS}, save_every: {SAVE_EVERY}}}\n"
    (folder / "c.yaml").write_text(config)
    return cli(["dpo", "c.yaml", "--quiet"])


def settings() -> dict[str, Any]:
    """Return the training arguments that both peers get."""
    return {
        "output_dir": "run",
        "max_steps": STEPS,
        "save_steps": SAVE_EVERY,
        "per_device_train_batch_size": PAIRS,
        "learning_rate": 1e-3,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "disable_tqdm": True,
    }


def trl(_: Path) -> None:
    """Run TRL's DPOTrainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained("../inputs/model"),
        args=DPOConfig(**settings(), gradient_checkpointing=False),
        train_dataset=Dataset.from_list(_rows()),
        processing_class=AutoTokenizer.from_pretrained("../inputs/model"),
    )
    _train(trainer)


def transformers(_: Path) -> None:
    """Run the Trainer of transformers on the chosen responses."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained("../inputs/model")
    texts = [{"input_ids": tokenizer(row["prompt"] + row["chosen"])["input_ids"]} for row in _rows()]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained("../inputs/model"),
        args=TrainingArguments(**settings()),
        train_dataset=Dataset.from_list(texts),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    _train(trainer)


def _train(trainer: Any) -> None:
    """Resume from the newest checkpoint if there is one, as both libraries recommend, and save the model."""
    from transformers.trainer_utils import get_last_checkpoint

    has_checkpoint = Path("run").is_dir() and get_last_checkpoint("run") is not None
    trainer.train(resume_from_checkpoint=True if has_checkpoint else None)
    trainer.save_model(f"run/{FINAL}")


def _rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in Path("../inputs/pairs.jsonl").read_text().splitlines()]


SYSTEMS: dict[str, Training] = {
    "preftune": preftune,
    "TRL DPOTrainer": trl,
    "transformers Trainer": transformers,
}
