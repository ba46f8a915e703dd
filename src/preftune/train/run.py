"""The run folder: config.yaml, manifest.json, metrics.jsonl, checkpoints/ and final/. Create, resume and write it."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError

from preftune import stop
from preftune.errors import RunError, Stopped, require_writable, writing
from preftune.files import write_json, write_text
from preftune.ranks import group
from preftune.ranks.shard import any_sharded
from preftune.train import checkpoint
from preftune.train.display import Display
from preftune.train.loop import stopped
from preftune.train.metrics import Tally
from preftune.train.optim import Weights
from preftune.train.track import Tracker

PACKAGES = ("preftune", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")
#: Config keys that may differ when a run resumes: they do not affect the data, and the weights only in the last digits.
CHANGEABLE = {
    ("confidence",),
    ("train", "log_every"),
    ("train", "eval_every"),
    ("train", "save_every"),
    ("track",),
    ("out",),
    ("batch", "tokens"),
    ("monitor",),
    ("samples",),
}


@dataclass
class Run:
    """An open run folder. It implements `Log`, which the training loop reports to.

    resume_from, start, tokens   the checkpoint to resume from, if any, its step, and its size of micro-batches
    tally, loop_state            from the checkpoint: metrics that were not logged, and PPO's KL coefficient
    evaluation_due               the checkpoint was saved before the evaluation of its step
    """

    folder: Path
    identity: dict[str, Any]
    display: Display
    trackers: list[Tracker] = field(default_factory=list)
    resume_from: Path | None = None
    start: int = 0
    tokens: int | None = None
    weights: Weights | None = None
    optimizer: torch.optim.Optimizer | None = None
    tally: Tally = field(default_factory=Tally)
    loop_state: dict[str, float] = field(default_factory=dict)
    evaluation_due: bool = False
    _reached: tuple[int, Tally, int, bool] | None = None

    @staticmethod
    def finished(folder: Path) -> bool:
        """Return whether `folder` contains a finished run."""
        return (folder / "final").is_dir() and Run.manifest(folder).get("finished", False)

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """Return the manifest of the run in `folder`; empty if there is no run."""
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            what = f"the file is damaged: {error}"
            raise RunError(what, where=str(path), fix="choose a different `out`, or delete the folder") from error
        return manifest if isinstance(manifest, dict) else {}

    @staticmethod
    def require_start(folder: Path, weights_hash: str) -> None:
        """Raise RunError if the run in `folder` started from different weights."""
        if Run.manifest(folder).get("start_weights") not in (None, weights_hash):
            kind = "finished" if Run.finished(folder) else "unfinished"
            raise RunError(
                "the model is not the one this run started from",
                where=str(folder),
                why=f"its weights differ from those at step 0 of this {kind} run; training changes a model in memory",
                fix="pass the original model, or choose a different `out`",
            )

    @staticmethod
    def check(folder: Path, identity: dict[str, Any], schema: type[BaseModel] | None = None) -> None:
        """Raise RunError if `folder` contains anything but this run, StorageError if it cannot be written.

        Nothing is written. `schema` is the class of the run's config; settings that are missing in the folder's config,
        because an earlier version wrote it, get their defaults from it.
        """
        manifest = Run.manifest(folder)
        if manifest:
            if "identity" not in manifest:
                what = "manifest.json does not describe a run"
                raise RunError(what, where=str(folder), fix="choose a different `out`")
            before = {**manifest["identity"], "config": _with_defaults(manifest["identity"]["config"], schema)}
            _require_same(before, identity, folder)
        elif folder.is_dir() and any(folder.iterdir()):
            names = ", ".join(sorted(p.name for p in folder.iterdir())[:5])
            what = f"the folder is not empty and is not a run: {names}"
            raise RunError(what, where=str(folder), fix="choose a different `out`")
        require_writable(folder)

    @staticmethod
    def open(folder: Path, identity: dict[str, Any], display: Display, schema: type[BaseModel] | None = None) -> Run:
        """Create the run folder, or open it to resume from its newest checkpoint. Raises the errors of `check`."""
        group.from_first(lambda: Run.check(folder, identity, schema))
        run, manifest = Run(folder, identity, display), Run.manifest(folder)
        run.resume_from, state, damaged = group.from_first(lambda: checkpoint.newest(folder / "checkpoints"))
        for description in damaged:
            display.say(f"skipped damaged checkpoint {description}")
        started = manifest.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if run.resume_from:
            run.start, run.tally, run.tokens = int(state["step"]), Tally.of(state["tally"]), int(state["tokens"])
            run.loop_state = dict(state["facts"])
            run.evaluation_due = not state.get("evaluated", True)
        group.barrier()  # all ranks have read the folder
        if group.first():
            run._create(started)
        else:
            run.tally = Tally()  # rank 0 has the metrics of all
        group.barrier()
        return run

    def _create(self, started: str) -> None:
        """Write the files of a new or resumed run, and remove those that are incomplete or will be written again."""
        folder = self.folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # write the manifest first: without it, the folder is not recognised as a run
            self.note(started=started, **machine())
            config = yaml.safe_dump(self.identity["config"], sort_keys=False, allow_unicode=True)
            (folder / "config.yaml").write_text(config)
            for partial in [*folder.glob("*.part*"), *folder.glob("checkpoints/*.part*")]:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        _drop_metrics_after(folder / "metrics.jsonl", self.start, self.evaluation_due)

    def note(self, **facts: Any) -> None:
        """Add entries to manifest.json."""
        if not group.first():
            return
        manifest = {**Run.manifest(self.folder), "identity": self.identity, **facts}
        write_json(self.folder / "manifest.json", manifest)

    def fact(self, name: str) -> Any:
        """Return an entry of manifest.json, or None."""
        return Run.manifest(self.folder).get(name)

    def attach(self, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
        """Set the weights and optimizer that checkpoints contain, and restore them if the run is resumed."""
        self.weights, self.optimizer = weights, optimizer
        if self.resume_from:
            checkpoint.restore(self.resume_from, weights, optimizer)

    def log_train(self, step: int, metrics: dict[str, float]) -> None:
        self._write_line(step, "train", metrics)

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        if metrics:
            self._write_line(step, "eval", metrics)

    def _write_line(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if not group.first():
            return
        line = {"step": step, "split": split, **metrics}
        with writing(self.folder / "metrics.jsonl"), (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.display.line(step, split, metrics)
        for tracker in self.trackers:
            tracker.log(step, {f"{split}/{name}": value for name, value in metrics.items()})

    def metric_lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def log_halved(self, step: int, tokens: int) -> None:
        """Print the new size of micro-batches after memory ran out."""
        self.display.say(f"step {step}: out of memory; repeating it with micro-batches of up to {tokens} token slots")

    def save(self, step: int, tally: Tally, tokens: int, *, evaluated: bool = True) -> None:
        """Save a checkpoint of `step`. `evaluated`: no evaluation is due after this step."""
        assert self.weights is not None
        assert self.optimizer is not None
        folder, weights, optimizer = self.folder / "checkpoints", self.weights, self.optimizer
        state: dict[str, Any] = {"identity": self.identity, "tally": tally.over_ranks().state(), "tokens": tokens}
        state |= {"facts": self.loop_state, "evaluated": evaluated}
        if any_sharded(weights.masters):
            path = checkpoint.save_parts(folder, step, weights, optimizer, state)
        else:
            path = group.from_first(lambda: checkpoint.save(folder, step, weights, optimizer, state))
        self.display.say(f"saved checkpoint {path}")

    def stop_requested(self) -> bool:
        """Return whether a rank was asked to stop. All ranks must call it at the same step."""
        return group.any_rank(stop.requested())

    def reached(self, step: int, tally: Tally, tokens: int, *, evaluated: bool) -> None:
        self._reached = step, tally, tokens, evaluated

    def save_reached(self, total: int) -> Stopped:
        """Save a checkpoint of the last completed step, unless there is one. Return the exception for a stopped run."""
        step, tally, tokens, evaluated = self._reached or (self.start, self.tally, self.tokens or 0, True)
        if step > self.start:
            self.save(step, tally, tokens, evaluated=evaluated)
        return stopped(step, total)


def run_identity(config: dict[str, Any], data: str, others: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what must be the same when a run resumes: config, fingerprint of the data, and `others` by name."""
    return {"config": config, "data": data, **(others or {})}


def machine() -> dict[str, Any]:
    """Return the command, versions and hardware, for the manifest."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "instructions": instructions(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
    }


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def instructions() -> str:
    """Return the fastest instructions of the CPU for matrix products: AMX, AVX512_BF16, AVX512, AVX2 or none."""
    capabilities = torch.cpu.get_capabilities()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx512_f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if capabilities.get(flag)), "none")


def _with_defaults(config: dict[str, Any], schema: type[BaseModel] | None) -> dict[str, Any]:
    """Return a stored config, with defaults for settings that did not exist when it was written."""
    if schema is None:
        return config
    try:
        return schema.model_validate(config).model_dump(mode="json")
    except ValidationError:  # it has settings that no longer exist; the comparison will report them
        return config


def _require_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raise RunError if the identity of the run in `folder`, `old`, differs from that of the command, `new`."""
    changes = [
        f"{'.'.join(key)} was {json.dumps(before)}, is now {json.dumps(now)}"
        for key, before, now in _differences(old["config"], new["config"])
        if not {key, key[:1]} & CHANGEABLE
    ]
    for name in sorted((old.keys() | new.keys()) - {"config"}):
        if name in old and old[name] != new.get(name):  # earlier versions did not record every fingerprint
            changes.append("the data files have changed" if name == "data" else f"{name} has changed")
    if changes:
        raise RunError(
            "the folder contains a run with different settings",
            where=str(folder),
            why="; ".join(changes),
            fix="restore the earlier settings to resume, or choose a different `out` for a new run",
        )


def _differences(
    old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield (key path, old value, new value) of every setting that differs."""
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, (*path, key))
        elif before != now:
            yield (*path, key), before, now


def _drop_metrics_after(path: Path, step: int, evaluation_due: bool) -> None:
    """Remove the metrics of what will be repeated: steps after the checkpoint, and an evaluation of its step."""
    if not path.is_file():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # an incomplete line, written when the process was killed
        repeated = evaluation_due and entry["step"] == step and entry["split"] == "eval"
        if entry["step"] <= step and step > 0 and not repeated:
            lines.append(line)
    write_text(path, (line + "\n" for line in lines))
