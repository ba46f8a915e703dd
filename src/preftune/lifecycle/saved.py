"""Opening what a run has made: a model folder, a run folder, or one of its checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from preftune import objects
from preftune.errors import RunError
from preftune.files import digest
from preftune.model import load
from preftune.model.adapter import add_lora, merge_adapter
from preftune.train.checkpoint import STATE, WEIGHTS
from preftune.train.run import Run


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, its name for tables, and where its tokenizer is."""

    name: str
    model: Any
    source: load.Source


def find_policy(path: str, where: str) -> Path:
    """The folder with the model that `path` names (its checkpoint, its `final`, or itself), not yet loaded.

    Raises ModelError or RunError for what holds none.
    """
    path = objects.model_path(path)
    folder = Path(path).expanduser()
    if (folder / STATE).is_file():
        return folder
    if (folder / "final").is_dir():
        folder = folder / "final"
    elif (folder / "manifest.json").is_file() and not (folder / "config.json").is_file():
        raise RunError(
            "a run that is not finished",
            where=str(folder),
            fix=f"name one of its checkpoints: {', '.join(_checkpoints(folder)) or 'there is none'}",
        )
    load.locate(str(folder) if folder.is_dir() else path, where)
    return folder


def source_of(path: str, where: str) -> load.Source:
    """Where the model that `path` names lies. Raises RunError for a checkpoint, because it is not a model folder."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        raise RunError("a checkpoint of a run", where=f"{where} {path}", fix=f"name the run: {folder.parent.parent}")
    return load.locate(str(folder) if folder.is_dir() else path, where)


def chat_record_of(path: str, where: str) -> dict[str, Any]:
    """How the run that made the model rendered chat messages; empty for a model of other origin."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        return load.chat_record(load.Source("", run=str(folder.parent.parent)))
    return load.chat_record(source_of(path, where))


def open_policy(path: str, where: str, dtype: torch.dtype, device: torch.device) -> Opened:
    """The model that `path` names. Raises ModelError or RunError for what holds none."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        model, source = _of_checkpoint(folder, dtype)
        return Opened(f"{folder.parent.parent.name}@{_step(folder)}", model.to(device).eval(), source)
    source = source_of(path, where)
    name = folder.parent.name if folder.name == "final" else folder.name
    return Opened(name or path, load.load_model(source, dtype).to(device), source)


def model_fingerprint(model: str) -> str:
    """A hash of a model folder's files, so that a model that was trained on is another one; a Hub id as it is."""
    folder = Path(objects.model_path(model)).expanduser()
    folder = folder / "final" if (folder / "final").is_dir() else folder
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def reward_fingerprint(name: str) -> str:
    """A judge's or reward's name with a hash of the models and files it stands for: what it said is good for these
    alone."""
    return " ".join(
        [
            name,
            *filter(None, [objects.digest_of(name)]),
            *(digest(path) if path.is_file() else model_fingerprint(str(path)) for path in _paths(name)),
        ]
    )


def reward_models_fingerprint(name: str | None) -> str:
    """A hash of the models that a reward stands for; a run goes on with these alone. None: a reward given in memory."""
    models = [model_fingerprint(str(path)) for path in _paths(name or "") if path.is_dir()]
    return hashlib.sha256(" ".join([name or "given in memory", *models]).encode()).hexdigest()


def warn_if_reward_changed(run: Run, name: str) -> bool:
    """Whether the reward's function was changed while its run stood still, as one that failed must be; it is said."""
    known = run.known("rewards") or []
    changed = bool(known) and known[-1] != reward_fingerprint(name)
    if changed:
        run.display.say(f"warning: {name} has changed since the run began; what it trained on stays")
    return changed


def note_reward(run: Run, name: str) -> None:
    """The manifest lists every state of the reward that the run has had."""
    known, now = run.known("rewards") or [], reward_fingerprint(name)
    if now not in known[-1:]:
        run.note(rewards=[*known, now])


def _paths(name: str) -> list[Path]:
    """The files and folders that a reward's name names. A judge behind a server and a function in memory have none."""
    return (
        []
        if name.startswith(("judge:", objects.FUNCTION))
        else [p for part in re.split("[:,]", name) if part and (p := _path(part))]
    )


def _path(text: str) -> Path | None:
    with suppress(OSError, RuntimeError, ValueError):  # no text that can be a path
        path = Path(text).expanduser()
        return path if path.exists() else None
    return None


def _of_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[Any, load.Source]:
    run = folder.parent.parent
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        path, lora = str(config["model"]["path"]), config.get("lora")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunError(f"the run of this checkpoint has no readable config.yaml: {error}", where=str(folder)) from error
    source = load.locate(path, f"{run / 'config.yaml'} model.path")
    model = load.load_model(source, torch.float32 if lora else dtype)
    if lora:
        model = add_lora(model, lora["rank"], lora["alpha"], lora["targets"])
    saved = load_file(folder / WEIGHTS)
    if any(name.startswith("policy.") for name in saved):  # PPO saves the value model beside it
        saved = {name.removeprefix("policy."): t for name, t in saved.items() if name.startswith("policy.")}
    parameters = dict(model.named_parameters())
    unknown = sorted(set(saved) - set(parameters))
    if unknown:
        raise RunError(f"the checkpoint has weights that the model lacks: {unknown[0]}", where=str(folder))
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)
    return (load.cast_like_source(merge_adapter(model, str(folder)), source, dtype) if lora else model), replace(
        source, run=str(run)
    )


def _step(folder: Path) -> int:
    return int(json.loads((folder / STATE).read_text())["step"])


def _checkpoints(run: Path) -> list[str]:
    return sorted(str(p) for p in (run / "checkpoints").glob("step-????????"))
