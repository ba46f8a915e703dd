"""Checkpoints: trained weights and optimizer state as safetensors, everything else as JSON; never pickle.

    checkpoints/step-00000123/
        weights.safetensors     fp32 masters by parameter name
        optimizer.safetensors   optimizer state as "<parameter>/<key>"
        state.json              step, sha256 of the files, metrics not yet logged, the identity of the run; written last

Ranks that split the weights write part-00000.safetensors and so on instead of the first two files
(ranks.checkpoint). A run resumes from either form on any number of ranks.

A checkpoint is written to a temporary folder, which is renamed when it is complete. The order of the data and all
random numbers are functions of seed and step, so no other position is saved.
"""

from __future__ import annotations

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
from preftune.files import digest
from preftune.ranks import group
from preftune.ranks.checkpoint import Parts, write_part
from preftune.ranks.shard import any_sharded, is_dtensor
from preftune.train.optim import Weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save(folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` to `folder`, with `state` in state.json. Keep the newest two checkpoints."""
    final = folder / f"step-{step:08d}"
    part = folder / f"{final.name}.part-{os.getpid()}"
    try:
        with writing(final):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file({name: master.detach().contiguous() for name, master in weights}, part / WEIGHTS)
            save_file(_optimizer_tensors(weights, optimizer), part / OPTIMIZER)
            hashes = {name: digest(part / name) for name in (WEIGHTS, OPTIMIZER)}
            _complete(part, final, {"step": step, "files": hashes, **state})
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def save_parts(
    folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write the checkpoint of weights that are split among ranks: each rank its rows. All ranks must call it."""
    final = folder / f"step-{step:08d}"
    part = group.from_first(lambda: folder / f"{final.name}.part-{os.getpid()}")
    tensors = {f"weights/{name}": master for name, master in weights}
    tensors |= {f"optimizer/{name}": value for name, value in _optimizer_tensors(weights, optimizer).items()}
    with writing(final):
        part.mkdir(parents=True, exist_ok=True)
        path = write_part(part, tensors)
        if path is not None:
            _sync(path)
    hashes = dict(item for item in group.gather((path.name, digest(path)) if path else None) if item)
    with writing(final):
        group.from_first(lambda: _complete(part, final, {"step": step, "files": hashes, **state}))
    return final


def _complete(part: Path, final: Path, state: dict[str, Any]) -> None:
    """Write state.json, give the checkpoint its name, and delete old ones."""
    (part / STATE).write_text(json.dumps(state, indent=1))
    for path in (*sorted(part.iterdir()), part):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _sync(final.parent)
    for old in saved(final.parent)[:-2]:
        shutil.rmtree(old, ignore_errors=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, which one process or several ranks have written."""
    if (path / WEIGHTS).is_file():
        return load_file(path / WEIGHTS)
    parts = Parts(path)
    return {name: parts.read(f"weights/{name}") for name in parts.names("weights/")}


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-????????"))


def newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """Return the newest intact checkpoint, its state, and descriptions of newer, damaged ones.

    Return (None, {}, []) if there is no checkpoint. Raises RunError if all are damaged, because the user must decide
    whether to start again from step 0.
    """
    damaged = []
    for path in reversed(saved(folder)):
        try:
            state = json.loads((path / STATE).read_text())
            changed = [name for name, sha256 in state["files"].items() if digest(path / name) != sha256]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            damaged.append(f"{path.name}: {error}")
            continue
        if not changed:
            return path, state, damaged
        damaged.append(f"{path.name}: the hash in state.json does not match {', '.join(changed)}")
    if damaged:
        raise RunError(
            "all checkpoints are damaged",
            where=str(folder),
            why="; ".join(damaged),
            fix="restore the folder from a backup, or delete it to start again from step 0",
        )
    return None, {}, []


def _sync(path: Path) -> None:
    """Force the file or folder to be written to the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def restore(path: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state from a checkpoint. Raises RunError if its weights do not match the model."""
    if any_sharded(weights.masters) or not (path / WEIGHTS).is_file():
        _restore_rows(path, weights, optimizer)
        return
    saved = load_file(path / WEIGHTS)
    shapes = {name: tuple(master.shape) for name, master in weights}
    if {name: tuple(value.shape) for name, value in saved.items()} != shapes:
        what = "names or shapes of the weights in the checkpoint do not match the model"
        raise RunError(what, where=str(path), fix="restore the files of the model, or set a new folder: out=FOLDER")
    with torch.no_grad():
        for name, master in weights:
            master.copy_(saved[name])
    weights.publish()
    index = {name: i for i, name in enumerate(weights.names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path / OPTIMIZER).items():
        name, _, field = key.rpartition("/")
        state.setdefault(index[name], {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _restore_rows(path: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Load this rank's rows, or whole tensors, whatever number of ranks has written the checkpoint."""
    parts = Parts(path, {WEIGHTS: "weights/", OPTIMIZER: "optimizer/"})
    shapes = {name: tuple(master.shape) for name, master in weights}
    if {name: parts.shapes[f"weights/{name}"] for name in parts.names("weights/")} != shapes:
        what = "names or shapes of the weights in the checkpoint do not match the model"
        raise RunError(what, where=str(path), fix="restore the files of the model, or set a new folder: out=FOLDER")
    index = {name: i for i, name in enumerate(weights.names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key in parts.names("optimizer/"):
        name, _, field = key.rpartition("/")
        master = weights.masters[index[name]]
        whole_shape = parts.shapes[f"optimizer/{key}"]
        value = torch.zeros_like(master, dtype=parts.dtype(f"optimizer/{key}")) if whole_shape else torch.zeros(())
        parts.fill(f"optimizer/{key}", value)
        state.setdefault(index[name], {})[field] = value
    for name, master in weights:
        parts.fill(f"weights/{name}", master.detach())
    weights.publish()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{key}": value.detach() if is_dtensor(value) else value.detach().contiguous()
        for index, name in enumerate(weights.names)
        for key, value in state.get(index, {}).items()
        if isinstance(value, Tensor)
    }
