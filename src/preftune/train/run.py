"""The run folder: resolved config, manifest, metrics, checkpoints, the final model; new, resumed or finished.

config.yaml  manifest.json  metrics.jsonl  checkpoints/  final/
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError

from preftune.errors import ConfigError, RunError, require_writable, writing
from preftune.files import write_json, write_text
from preftune.train import checkpoint
from preftune.train.display import Display
from preftune.train.metrics import Tally
from preftune.train.optim import Weights
from preftune.train.track import Tracker

PACKAGES = ("preftune", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")
#: Config keys that a resumed run may change: they alter no data, and weights at most in their last digits.
FREE = {
    ("confidence",),
    ("train", "log_every"),
    ("train", "eval_every"),
    ("train", "save_every"),
    ("track",),
    ("out",),
    ("batch", "tokens"),
    ("monitor",),
}


@dataclass
class Run:
    """An open run folder. It is the Log of the training loop."""

    folder: Path
    identity: dict[str, Any]
    display: Display
    trackers: list[Tracker] = field(default_factory=list)
    resumed: Path | None = None
    start: int = 0
    tokens: int | None = None
    weights: Weights | None = None
    optimizer: torch.optim.Optimizer | None = None
    tally: Tally = field(default_factory=Tally)
    facts: dict[str, float] = field(default_factory=dict)  # what else the next step depends on
    _stop: bool = False

    @staticmethod
    def finished(folder: Path) -> bool:
        """Whether a run in `folder` came to its end."""
        return (folder / "final").is_dir() and _manifest(folder).get("finished", False)

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """The facts that were noted about the run in `folder`; empty if there is none."""
        return _manifest(folder)

    @staticmethod
    def require_start(folder: Path, weights: str) -> None:
        """Raises RunError unless the run in `folder` started from the weights with this hash."""
        before = _manifest(folder).get("start_weights")
        if before and before != weights:
            end = "finished" if Run.finished(folder) else "resumed"
            raise RunError(
                "the model is not the one this run started from",
                where=str(folder),
                why=f"a {end} run belongs to its first weights; a model that was trained since has others",
                fix="load the original model again and give that, or choose another `out`",
            )

    @staticmethod
    def check(folder: Path, identity: dict[str, Any], schema: type[BaseModel] | None = None) -> None:
        """Raises RunError if `folder` holds anything but this run, StorageError if it cannot be; writes nothing.

        `schema` is the class of the run's config: a setting that the folder's config does not have, since an earlier
        version wrote it, had its default.
        """
        known = _manifest(folder)
        if known:
            if "identity" not in known:
                raise RunError("manifest.json names no run", where=str(folder), fix="choose another `out`")
            before = {**known["identity"], "config": _completed(known["identity"]["config"], schema)}
            _same(before, identity, folder)
        elif folder.is_dir() and any(folder.iterdir()):
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:5])
            what = f"the folder is not empty and is no run: {found}"
            raise RunError(what, where=str(folder), fix="choose another `out`")
        require_writable(folder)

    @staticmethod
    def open(
        folder: Path,
        identity: dict[str, Any],
        display: Display,
        schema: type[BaseModel] | None = None,
    ) -> Run:
        """Start in an empty folder, or go on where the same command stopped.

        Raises RunError if the folder belongs to something else or to a run with another config or other data.
        """
        Run.check(folder, identity, schema)
        run, known = Run(folder, identity, display), _manifest(folder)
        run.resumed, state, damaged = checkpoint.newest(folder / "checkpoints")
        for found in damaged:
            display.say(f"a damaged checkpoint is not used: {found}")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # the manifest first: it is what makes the folder a run
            run.note(started=known.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"), **machine())
            (folder / "config.yaml").write_text(yaml.safe_dump(identity["config"], sort_keys=False, allow_unicode=True))
            for left in [*folder.glob("*.part*"), *folder.glob("checkpoints/*.part*")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if run.resumed:
            run.start, run.tally, run.tokens = int(state["step"]), Tally.of(state["tally"]), int(state["tokens"])
            run.facts = dict(state["facts"])
        _cut_metrics(folder / "metrics.jsonl", run.start)
        return run

    def note(self, **facts: Any) -> None:
        """Add facts to manifest.json."""
        manifest = {**_manifest(self.folder), "identity": self.identity, **facts}
        write_json(self.folder / "manifest.json", manifest)

    def known(self, fact: str) -> Any:
        """A fact noted before, or None."""
        return _manifest(self.folder).get(fact)

    def attach(self, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
        """Name what checkpoints are made of, and restore the newest one if the run is resumed."""
        self.weights, self.optimizer = weights, optimizer
        if self.resumed:
            checkpoint.restore(self.resumed, weights, optimizer)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        self._line(step, "train", metrics)

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        if metrics:
            self._line(step, "eval", metrics)

    def _line(self, step: int, split: str, metrics: dict[str, float]) -> None:
        line = {"step": step, "split": split, **metrics}
        with writing(self.folder / "metrics.jsonl"), (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.display.line(step, split, metrics)
        for tracker in self.trackers:
            tracker.log(step, {f"{split}/{name}": value for name, value in metrics.items()})

    def lines(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def halved(self, step: int, tokens: int) -> None:
        """Say so."""
        self.display.say(f"step {step}: out of memory; from here on a micro-batch has at most {tokens} token slots")

    def save(self, step: int, tally: Tally, tokens: int) -> None:
        assert self.weights is not None
        assert self.optimizer is not None
        folder = self.folder / "checkpoints"
        facts = {"identity": self.identity, "tally": tally.state(), "tokens": tokens, "facts": self.facts}
        path = checkpoint.save(folder, step, self.weights, self.optimizer, facts)
        self.display.say(f"checkpoint {path}")

    def stop_requested(self) -> bool:
        return self._stop

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks the loop to save and stop; the second ends the program at once (130)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _frame: FrameType | None) -> None:
            if self._stop and number == signal.SIGINT:
                os._exit(130)
            self._stop = True
            self.display.say("stopping after this step; press Ctrl-C again to stop at once and lose it")

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def run_identity(config: dict[str, Any], data: str, others: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What makes a run the same run: its resolved config, fingerprints of its data, and of `others` by their names."""
    return {"config": config, "data": data, **(others or {})}


def machine() -> dict[str, Any]:
    """Versions and hardware, for the manifest."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
    }


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise RunError(
            f"damaged: {error}", where=str(path), fix="choose another `out`, or delete the folder"
        ) from error
    return found if isinstance(found, dict) else {}


def _completed(config: dict[str, Any], schema: type[BaseModel] | None) -> dict[str, Any]:
    """A stored config with the settings that are newer than it, at their defaults."""
    if schema is None:
        return config
    try:
        return schema.model_validate(config).model_dump(mode="json")
    except ValidationError:  # it has settings that are gone; the comparison names them
        return config


def _same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    changed = [
        f"{'.'.join(key)} was {json.dumps(was)}, is {json.dumps(now)}"
        for key, was, now in _differences(old["config"], new["config"])
        if not {key, key[:1]} & FREE
    ]
    said = {"data": "the data files have changed"}
    for name in sorted((old.keys() | new.keys()) - {"config"}):
        if name in old and old[name] != new.get(name):  # what an earlier version did not note cannot be compared
            changed.append(said.get(name, f"{name} has changed"))
    if changed:
        raise RunError(
            "the folder holds a run with other settings",
            where=str(folder),
            why="; ".join(changed),
            fix="choose another `out` for a new run, or go back to the old settings to resume",
        )


def _differences(
    old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, (*path, key))
        elif was != now:
            yield (*path, key), was, now


def _cut_metrics(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps are done again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line that a crash left half written
        if entry["step"] <= step and (step > 0):
            kept.append(line)
    write_text(path, (line + "\n" for line in kept))


def require_packages(names: list[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            raise ConfigError(
                f"{name} is not installed", where="track", fix=f"pip install 'preftune[{name}]'"
            ) from None
