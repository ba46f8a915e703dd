"""Checkpoints: trained weights and optimizer state as safetensors, everything else as JSON; never pickle.

    checkpoints/step-00000123/
        weights.safetensors     fp32 masters by parameter name
        optimizer.safetensors   optimizer state as "<parameter>/<key>"
        state.json              step, sha256 of the files, metrics not yet logged, the run; sealed, and written last

    checkpoints/best-00000100/    the weights of the best evaluation, and state.json

A checkpoint is written to a temporary folder, which is renamed when it is complete. The order of the data and all
random numbers are functions of seed and step, so no other position is saved.

A checkpoint is intact if the seal of state.json matches its content and the manifest of the run, its step matches the
name of the folder, it belongs to this run, and its files match their hashes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from preftune.errors import RunError, writing
from preftune.files import SEAL, digest, read_sealed, sealed, sync
from preftune.train.optim import Weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
OLD = ".part-old"  # ending of a checkpoint while another one of the same step replaces it


def name_of(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def save(folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` to `folder`, with `state` in state.json. Keep the newest two checkpoints."""
    tensors = {WEIGHTS: _weights(weights), OPTIMIZER: _optimizer_tensors(weights, optimizer)}
    final = _write(folder / name_of(step), tensors, {"step": step, **state})
    for old in saved(folder)[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def save_weights(path: Path, weights: Weights, state: dict[str, Any]) -> None:
    """Write the weights without the optimizer state to the folder `path`, with `state` in state.json."""
    _write(path, {WEIGHTS: _weights(weights)}, state)


def _write(final: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write files of tensors, and state.json with their hashes, to the folder `final`, and return it."""
    part = final.with_name(f"{final.name}.part-{os.getpid()}")
    try:
        with writing(final):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, values in tensors.items():
                save_file(values, part / name)
            hashes = {name: digest(part / name) for name in tensors}
            (part / STATE).write_text(json.dumps(sealed({"files": hashes, **state}), indent=1))
            for path in (*(part / name for name in tensors), part / STATE, part):
                sync(path)
            if final.exists():  # a damaged checkpoint of this step, or one of a run that was stopped in its evaluation
                os.replace(final, final.with_name(f"{final.name}{OLD}"))
            os.replace(part, final)
            sync(final.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(final.with_name(f"{final.name}{OLD}"), ignore_errors=True)
    return final


def recover(folder: Path) -> None:
    """Restore the checkpoints that a killed process was about to replace. Raises OSError."""
    for old in folder.glob(f"*{OLD}"):
        final = old.with_name(old.name.removesuffix(OLD))
        if not final.exists():
            os.replace(old, final)


def _weights(weights: Weights) -> dict[str, Tensor]:
    return {name: master.detach().contiguous() for name, master in weights}


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-????????"))


def seals(folder: Path) -> dict[str, str]:
    """Return the seal of each checkpoint in a folder, for the manifest."""
    result = {}
    for path in saved(folder):
        try:
            result[path.name] = str(json.loads((path / STATE).read_text())[SEAL])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged, or of an earlier version
    return result


def newest(folder: Path, manifest: Mapping[str, Any] | None = None) -> tuple[Path | None, dict[str, Any], list[str]]:
    """Return the newest intact checkpoint, its state, and descriptions of newer ones that are damaged or missing.

    `manifest` is the manifest of the run. The path is None if there is no checkpoint. Raises RunError if all are
    damaged, because the user must decide whether to start again from step 0.
    """
    manifest = manifest or {}
    listed: Mapping[str, str] = manifest.get("checkpoints") or {}
    problems: list[str] = []
    names = {path.name for path in saved(folder)}
    for name in sorted({*names, *listed}, reverse=True):
        problem = damage(folder / name, manifest)
        if not problem:
            return folder / name, read_sealed(folder / name / STATE), problems
        problems.append(f"{name}: {problem}")
    if names:
        raise RunError(
            "all checkpoints are damaged",
            where=str(folder),
            why="; ".join(problems),
            fix="restore the folder from a backup, or delete it to start again from step 0",
        )
    return None, {}, problems


def damage(path: Path, manifest: Mapping[str, Any] | None = None, files: Collection[str] = (WEIGHTS, OPTIMIZER)) -> str:
    """Return what is wrong with a checkpoint of the run with this manifest, or ""."""
    if not path.is_dir():
        return "the folder is missing"
    try:
        seal = json.loads((path / STATE).read_text()).get(SEAL)
        state = read_sealed(path / STATE)
        problem = _wrong_state(path.name, state, seal, manifest or {})
        if problem or not set(files) <= set(state["files"]):
            return problem or f"{STATE} does not list all files"
        changed = [name for name, sha256 in state["files"].items() if digest(path / name) != sha256]
    except OSError as error:
        return str(error)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{STATE}: {error}"
    return f"the hash in {STATE} does not match {', '.join(changed)}" if changed else ""


def _wrong_state(name: str, state: Mapping[str, Any], seal: str | None, manifest: Mapping[str, Any]) -> str:
    """Return why `state` is not the state that the run has written to the checkpoint `name`, or ""."""
    run = state.get("run")
    if (manifest.get("checkpoints") or {}).get(name, seal) != seal:
        return f"{STATE} is not the one that the run has written"
    if run is not None and seal is None:
        return f"{STATE} has no hash"
    if f"{int(state['step']):08d}" != name[-8:]:
        return f"{STATE} is that of step {state['step']}"
    if None not in (run, manifest.get("run")) and run != manifest.get("run"):
        return "it belongs to another run"
    return ""


def require_intact(path: Path) -> Path:
    """Return the folder of the weights of the best evaluation. Raises RunError if they are damaged."""
    problem = damage(path, files=(WEIGHTS,))
    if problem:
        fix = "restore the folder from a backup, or set best.final=last and choose a different `out`"
        raise RunError(f"the weights of the best evaluation are damaged: {problem}", where=str(path), fix=fix)
    return path


def restore(path: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state from a checkpoint. Raises RunError if its weights do not match the model."""
    restore_weights(path, weights)
    index = {name: i for i, name in enumerate(weights.names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path / OPTIMIZER).items():
        name, _, field = key.rpartition("/")
        state.setdefault(index[name], {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def restore_weights(path: Path, weights: Weights) -> None:
    """Load the weights of a checkpoint. Raises RunError if they do not match the model."""
    saved = load_file(path / WEIGHTS)
    shapes = {name: tuple(master.shape) for name, master in weights}
    if {name: tuple(value.shape) for name, value in saved.items()} != shapes:
        what = "names or shapes of the weights in the checkpoint do not match the model"
        raise RunError(what, where=str(path), fix="restore the files of the model, or set a new folder: out=FOLDER")
    with torch.no_grad():
        for name, master in weights:
            master.copy_(saved[name])
    weights.publish()


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{key}": value.detach().contiguous()
        for index, name in enumerate(weights.names)
        for key, value in state.get(index, {}).items()
        if isinstance(value, Tensor)
    }
