"""Checkpoints: trained weights and optimizer state as safetensors, the position as JSON; never pickle.

    checkpoints/step-00000123/
        weights.safetensors     fp32 masters by parameter name
        optimizer.safetensors   its tensors as "<parameter>/<key>"
        state.json              step, sizes of the files, and the identity of the run; written last

A checkpoint is written beside its final place and renamed when it is complete. The order of the data and of
everything random is a function of seed and step, so the step is the whole position.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from preftune.errors import RunError, StorageError
from preftune.train.optim import Weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save(folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` below `folder` and remove older ones."""
    final = folder / f"step-{step:08d}"
    part = folder / f"{final.name}.part-{os.getpid()}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({name: master.detach().contiguous() for name, master in weights}, part / WEIGHTS)
        save_file(_optimizer_tensors(weights, optimizer), part / OPTIMIZER)
        sizes = {name: (part / name).stat().st_size for name in (WEIGHTS, OPTIMIZER)}
        state = {"step": step, "files": sizes, "identity": identity}
        (part / STATE).write_text(json.dumps(state, indent=1))
        for name in (WEIGHTS, OPTIMIZER, STATE):
            with (part / name).open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StorageError(f"cannot write the checkpoint: {error.strerror or error}", where=str(final)) from error
    for old in sorted(folder.glob("step-????????"))[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint and its state."""
    for path in sorted(folder.glob("step-????????"), reverse=True):
        try:
            state = json.loads((path / STATE).read_text())
            if all((path / name).stat().st_size == size for name, size in state["files"].items()):
                return path, state
        except (OSError, ValueError, KeyError):
            continue
    return None


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
