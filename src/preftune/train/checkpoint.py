"""Checkpoints: trained weights and optimizer state as safetensors, the position as JSON; never pickle.

    checkpoints/step-00000123/
        weights.safetensors     fp32 masters by parameter name
        optimizer.safetensors   its tensors as "<parameter>/<key>"
        state.json              step, sha256 of the files, metrics not yet logged, the identity of the run; written last

A checkpoint is written beside its final place and renamed when it is complete. The order of the data and of
everything random is a function of seed and step, so the step is the whole position.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from preftune.errors import RunError, writing
from preftune.train.optim import Weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save(
    folder: Path,
    step: int,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> Path:
    """Write the checkpoint of `step` below `folder` and remove older ones; `facts` are kept in its state."""
    final = folder / f"step-{step:08d}"
    part = folder / f"{final.name}.part-{os.getpid()}"
    try:
        with writing(final):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file({name: master.detach().contiguous() for name, master in weights}, part / WEIGHTS)
            save_file(_optimizer_tensors(weights, optimizer), part / OPTIMIZER)
            hashes = {name: _sha256(part / name) for name in (WEIGHTS, OPTIMIZER)}
            state = {"step": step, "files": hashes, **facts}
            (part / STATE).write_text(json.dumps(state, indent=1))
            for path in (part / WEIGHTS, part / OPTIMIZER, part / STATE, part):
                _to_disk(path)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(part, final)
            _to_disk(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in sorted(folder.glob("step-????????"))[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest whole checkpoint with its state, and what is wrong with newer ones.

    Raises RunError if there are checkpoints and none is whole: to start again from step 0 is for the user to decide.
    """
    damaged = []
    for path in sorted(folder.glob("step-????????"), reverse=True):
        try:
            state = json.loads((path / STATE).read_text())
            wrong = [name for name, known in state["files"].items() if _sha256(path / name) != known]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            damaged.append(f"{path.name}: {error}")
            continue
        if not wrong:
            return path, state, damaged
        damaged.append(f"{path.name}: {', '.join(wrong)} is not what was written")
    if damaged:
        raise RunError(
            "no checkpoint is whole",
            where=str(folder),
            why="; ".join(damaged),
            fix="restore the folder from a copy, or delete it to begin at step 0",
        )
    return None, {}, []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def restore(path: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Bring weights and optimizer back to the checkpoint. Raises RunError if it is of another model."""
    saved = load_file(path / WEIGHTS)
    shapes = {name: tuple(master.shape) for name, master in weights}
    if {name: tuple(value.shape) for name, value in saved.items()} != shapes:
        raise RunError("the checkpoint holds other weights than the model", where=str(path))
    with torch.no_grad():
        for name, master in weights:
            master.copy_(saved[name])
    weights.publish()
    tensors = load_file(path / OPTIMIZER)
    index = {name: i for i, name in enumerate(weights.names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        state.setdefault(index[name], {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{key}": value.detach().contiguous()
        for index, name in enumerate(weights.names)
        for key, value in state.get(index, {}).items()
        if isinstance(value, Tensor)
    }
