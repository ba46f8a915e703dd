"""The folder of a campaign: a tiny random model, small data, the commands, and their undisturbed results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl

from torturing import forks

TIMES = ("_per_s", "seconds", "_s", "time")  # ends of the names of values that depend on the clock
IGNORED = ("manifest.json", ".manifest.json", "README.md", "config.yaml")
IGNORED_KINDS = (".html", ".lock", ".svg", ".png")
REWARD = """
def vowels(prompts, responses):
    return [sum(c in "aeiou" for c in response) / 10 for response in responses]
"""
PPO = """
rollout: {prompts: 2, responses: 2, max_new_tokens: 4}
ppo: {epochs: 2, minibatches: 2}
reward: ../inputs/own.py:vowels
"""
ITERATE = """
reward: ../inputs/own.py:vowels
rounds: 2
sample: {n: 3, max_new_tokens: 4, evaluation: 2}
batch: {pairs: 4}
train: {save_every: 1}
"""
TRAINING = """
batch: {pairs: 2}
train: {max_steps: 4, eval_every: 2, save_every: 1, log_every: 1}
"""
COMMON = """
model: {path: ../inputs/model, dtype: fp32}
optim: {lr: 1.0e-3}
out: run
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of preftune. All paths are relative to the folder in which it runs."""

    name: str
    arguments: tuple[str, ...]


def _training(name: str) -> Command:
    return Command(name, (name, f"../inputs/{name}.yaml", "--quiet"))


SAMPLING = ("--max-new-tokens", "6", "--dtype", "fp32")
COMMANDS = (
    *(_training(name) for name in ("sft", "dpo", "reward", "ppo", "iterate")),
    Command(
        "sample",
        ("sample", "--model", "../inputs/model", "--prompts", "../inputs/pairs.jsonl", "--n", "3", *SAMPLING),
    ),
    Command("score", ("score", "--data", "../inputs/pairs.jsonl", "--reward", "../inputs/own.py:vowels")),
    Command("pairs", ("pairs", "../inputs/samples.jsonl", "--reward", "../inputs/own.py:vowels")),
    Command("data convert", ("data", "convert", "../inputs/pairs.jsonl", "--out", "converted.jsonl")),
    Command(
        "eval winrate",
        (
            *("eval", "winrate", "--policy", "../inputs/model", "--data", "../inputs/pairs.jsonl"),
            *("--judge", "length", "--temperatures", "0.5,1", "--max-prompts", "4", *SAMPLING),
        ),
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(slots=True)
class World:
    """A campaign. `undisturbed` has the normalised files of each command, and `cpu_seconds` its processor time.

    `seconds` has the times by the clock of commands that are measured.
    """

    root: Path
    seed: int
    undisturbed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return a new, empty folder."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def whole(self, command: Command) -> dict[str, bytes]:
        """Run a command without disturbing it, once per campaign, and return its files."""
        if command.name not in self.undisturbed:
            folder = self.root / f"whole-{command.name.replace(' ', '-')}"
            folder.mkdir()
            done = forks.run(command.arguments, folder)
            if done.code:
                raise RuntimeError(f"{command.name} failed undisturbed with code {done.code}:\n{done.output}")
            self.undisturbed[command.name] = files_of(folder)
            self.cpu_seconds[command.name] = done.cpu_s
        return self.undisturbed[command.name]

    def remove(self, folder: Path) -> None:
        """Delete the folder of a case, and its output."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.{forks.OUTPUT}").unlink(missing_ok=True)


def create(root: Path, seed: int) -> World:
    """Write the inputs, and import preftune."""
    inputs = root / "inputs"
    inputs.mkdir(parents=True)
    make_model(hidden_size=16, intermediate_size=32).save_pretrained(inputs / "model")
    make_tokenizer().save_pretrained(inputs / "model")
    write_jsonl(inputs / "pairs.jsonl", list(PAIRS))
    responses = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], " maybe"]} for row in PAIRS]
    write_jsonl(inputs / "samples.jsonl", responses)
    (inputs / "own.py").write_text(REWARD)
    data = "data: {train: ../inputs/pairs.jsonl, eval: 0.25}\n"
    for name in ("sft", "dpo", "reward"):
        (inputs / f"{name}.yaml").write_text(COMMON + data + TRAINING + "monitor: null\n" * (name == "dpo"))
    rollouts = TRAINING.replace("batch: {pairs: 2}", "")
    (inputs / "ppo.yaml").write_text(COMMON + data + rollouts + PPO)
    (inputs / "iterate.yaml").write_text(COMMON + data + ITERATE)
    os.environ["COLUMNS"] = "200"
    (root / "warm").mkdir()
    forks.warm_up([(*BY_NAME["sample"].arguments, "--quiet"), BY_NAME["data convert"].arguments], root / "warm")
    return World(root, seed)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files that do not depend on the clock or on interruptions, by name."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not is_ignored(name):
            files[name] = normalised(path.name, path.read_bytes())
    return files


def is_ignored(name: str) -> bool:
    """Return whether a file may differ: pages, facts with times, copies of damaged files, and the cache."""
    parts = name.split("/")
    return (
        parts[0] == "cache"
        or parts[-1] in IGNORED
        or parts[-1].endswith(IGNORED_KINDS)
        or any(".damaged-" in part for part in parts)
    )


def normalised(name: str, data: bytes) -> bytes:
    """Return JSON and JSON lines without times and without hashes of files that have times."""
    kind = name.rpartition(".")[2]
    if kind not in ("json", "jsonl"):
        return data
    try:
        values = [json.loads(line) for line in (data.splitlines() if kind == "jsonl" else [data])]
    except ValueError:
        return data
    return json.dumps([_without_times(value) for value in values], sort_keys=True).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: entry for key, entry in value.items() if not key.endswith(TIMES) and key not in ("sha256", "crc")}
        return {key: _without_times(entry) for key, entry in kept.items() if key not in ("run", "metrics", "evaluated")}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


def difference(expected: Mapping[str, bytes], files: Mapping[str, bytes]) -> str:
    """Return how the files differ from the expected ones, or ""."""
    kinds: dict[str, Callable[[str], bool]] = {
        "missing": lambda name: name in expected and name not in files,
        "unexpected": lambda name: name not in expected,
        "different": lambda name: name in expected and name in files and expected[name] != files[name],
    }
    names = sorted({*expected, *files})
    parts = {kind: [name for name in names if test(name)] for kind, test in kinds.items()}
    return "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in parts.items() if names)
