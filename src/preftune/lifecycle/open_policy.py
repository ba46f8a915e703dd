"""Open a saved model by its path: a model folder, a run folder or a checkpoint. Compute fingerprints of models."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from preftune import in_memory
from preftune.errors import RunError
from preftune.files import digest
from preftune.model import load
from preftune.model.adapter import Variant, add_lora, merge_adapter
from preftune.model.locate import split_quant
from preftune.model.quantised import dequantise, quantise
from preftune.train import checkpoint
from preftune.train.checkpoint import STATE, WEIGHTS, read_weights
from preftune.train.run import Run


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, its short name for tables, and the source of its tokenizer."""

    name: str
    model: Any
    source: load.Source


def find_policy(path: str, where: str) -> Path:
    """Return the folder of the model that `path` refers to: a checkpoint, the `final` of a run, or a model folder.

    Nothing is loaded. Raises ModelError if there is no model, and RunError for an unfinished run.
    """
    path = split_quant(in_memory.model_path(path))[0]
    folder = Path(path).expanduser()
    if (folder / STATE).is_file():
        return folder
    if (folder / "final").is_dir():
        folder = folder / "final"
    elif (folder / "manifest.json").is_file() and not (folder / "config.json").is_file():
        checkpoints = [str(path) for path in checkpoint.saved(folder / "checkpoints")]
        fix = f"use a checkpoint ({', '.join(checkpoints) or 'there is none yet'}), or finish the run"
        raise RunError("the run is not finished, so it has no final model", where=str(folder), fix=fix)
    load.locate(str(folder) if folder.is_dir() else path, where)
    return folder


def source_of(path: str, where: str) -> load.Source:
    """Return the source of the model that `path` refers to. Raises RunError for a checkpoint, which has no source."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        what = "this is a checkpoint, not a model folder"
        raise RunError(what, where=f"{where} {path}", fix=f"use the run folder: {folder.parent.parent}")
    quant = split_quant(in_memory.model_path(path))[1]
    if not folder.is_dir():
        return load.locate(path, where)
    return load.locate(f"{folder}:{quant}" if quant else str(folder), where)


def chat_record_of(path: str, where: str) -> dict[str, Any]:
    """Return the chat settings of the run that trained the model; empty for a model from elsewhere."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        return load.chat_record(load.Source("", run=str(folder.parent.parent)))
    return load.chat_record(source_of(path, where))


def open_policy(path: str, where: str, dtype: torch.dtype, device: torch.device) -> Opened:
    """Load the model that `path` refers to. Raises the errors of `find_policy`."""
    folder = find_policy(path, where)
    if (folder / STATE).is_file():
        model, source = _load_checkpoint(folder, dtype)
        step = json.loads((folder / STATE).read_text())["step"]
        return Opened(f"{folder.parent.parent.name}@{step}", model.to(device).eval(), source)
    source = source_of(path, where)
    name = folder.parent.name if folder.name == "final" else folder.name
    return Opened(name or path, load.load_model(source, dtype, keep_quant=True).to(device), source)


def model_fingerprint(model: str) -> str:
    """Return a hash of the files of a model folder. A Hub id is returned unchanged."""
    path, quant = split_quant(in_memory.model_path(model))
    folder = Path(path).expanduser()
    folder = folder / "final" if (folder / "final").is_dir() else folder
    if not folder.is_dir():
        return model
    combined = hashlib.sha256((quant or "").encode())
    for part in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        combined.update(part.name.encode())
        with part.open("rb") as file:
            combined.update(hashlib.file_digest(file, "sha256").digest())
    return combined.hexdigest()


def reward_fingerprint(name: str) -> str:
    """Return the name of a reward or judge with hashes of its models and files. Cached scores are valid for it only."""
    hashes = [digest(path) if path.is_file() else model_fingerprint(str(path)) for path in _paths(name)]
    return " ".join([name, *filter(None, [in_memory.digest_of(name)]), *hashes])


def reward_models_fingerprint(name: str | None) -> str:
    """Return a hash of a reward's name and models; a run resumes only with the same. None: a reward in memory."""
    models = [model_fingerprint(str(path)) for path in _paths(name or "") if path.is_dir()]
    return hashlib.sha256(" ".join([name or "given in memory", *models]).encode()).hexdigest()


def warn_if_reward_changed(run: Run, name: str) -> bool:
    """Return whether the reward function has changed since the run was stopped, and print a warning if so.

    This is allowed: a function that failed must be corrected before the run can resume.
    """
    fingerprints = run.fact("rewards") or []
    changed = bool(fingerprints) and fingerprints[-1] != reward_fingerprint(name)
    if changed:
        run.display.say(f"warning: {name} has changed since the run began; completed steps used the earlier version")
    return changed


def note_reward(run: Run, name: str) -> None:
    """Append the reward's fingerprint to the list in the manifest if it has changed."""
    fingerprints, now = run.fact("rewards") or [], reward_fingerprint(name)
    if now not in fingerprints[-1:]:
        run.note(rewards=[*fingerprints, now])


def _paths(name: str) -> list[Path]:
    """Return the files and folders in the name of a reward; none for a judge on a server or a function in memory."""
    if name.startswith(("judge:", in_memory.FUNCTION)):
        return []
    return [path for part in re.split("[:,]", name) if part and (path := _existing(part))]


def _existing(text: str) -> Path | None:
    with suppress(OSError, RuntimeError, ValueError):  # the text cannot be a path
        path = Path(text).expanduser()
        return path if path.exists() else None
    return None


def _load_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[Any, load.Source]:
    """Return the model of a checkpoint, with an adapter merged, and the source that the run started from."""
    run = folder.parent.parent
    problem = checkpoint.damage(folder, Run.manifest(run), files=(WEIGHTS,))
    if problem:
        what = f"the checkpoint is damaged: {problem}"
        raise RunError(what, where=str(folder), fix="use a different checkpoint, or the final model of the run")
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        path, quant, lora = str(config["model"]["path"]), config["model"].get("quant"), config.get("lora")
    except (OSError, ValueError, yaml.YAMLError, RecursionError, KeyError, TypeError) as error:
        what = f"cannot read config.yaml of the run of this checkpoint: {error}"
        fix = f"restore {run / 'config.yaml'}, or use the final model of a run"
        raise RunError(what, where=str(folder), fix=fix) from error
    source = load.locate(path, f"{run / 'config.yaml'} model.path")
    kept = source.adapter if lora and lora.get("adapter") == "keep" else None
    model = load.load_model(replace(source, adapter=None) if kept else source, torch.float32 if lora else dtype)
    if quant and not (kept and source.quant):
        model = dequantise(quantise(model, quant), torch.float32)
    if lora:
        names = {field.name for field in fields(Variant)} & set(lora)
        variant = Variant(**{name: lora[name] for name in names})
        model = add_lora(model, lora["rank"], lora["alpha"], lora["targets"], variant=variant, kept=kept)
    saved = read_weights(folder)
    if any(name.startswith("policy.") for name in saved):  # PPO also saves the value model
        saved = {name.removeprefix("policy."): t for name, t in saved.items() if name.startswith("policy.")}
    parameters = dict(model.named_parameters())
    unknown = sorted(set(saved) - set(parameters))
    if unknown:
        what = f"the checkpoint has a weight that the model does not have: {unknown[0]}"
        raise RunError(what, where=str(folder), fix=f"restore the files of the model {path} that the run started from")
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)
    if lora:
        model = load.cast_like_source(merge_adapter(model, str(folder)), source, dtype)
    return model, replace(source, run=str(run))
