"""Checkpoints: trained weights and optimizer state as safetensors, everything else as JSON; never pickle.

    checkpoints/step-00000123/
        weights.safetensors     fp32 masters by parameter name
        optimizer.safetensors   optimizer state as "<parameter>/<key>"
        state.json              step, sha256 of the files, metrics not yet logged, the run; sealed, and written last

    checkpoints/best-00000100/    the weights of the best evaluation, and state.json

Ranks that split the weights write part-00000.safetensors and so on instead of these files (ranks.checkpoint). A run
resumes from either form on any number of ranks.

A checkpoint is written to a temporary folder, which is renamed when it is complete. The order of the data and all
random numbers are functions of seed and step, so no other position is saved.

A checkpoint is intact if the seal of state.json matches its content and the manifest of the run, its step matches the
name of the folder, it belongs to this run, and its files match their hashes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from preftune.errors import RunError, StorageError, writing
from preftune.files import SEAL, digest, read_sealed, sealed, sync
from preftune.ranks import group
from preftune.ranks.checkpoint import Parts, Rows, own_rows, write_rows
from preftune.ranks.shard import any_sharded, is_dtensor
from preftune.train.in_flight import InThread
from preftune.train.optim import Weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
PREFIX = {WEIGHTS: "weights/", OPTIMIZER: "optimizer/"}  # of the names in the parts of ranks
OLD = ".part-old"  # ending of a checkpoint while another one of the same step replaces it


def name_of(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def save(folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` to `folder`, with `state` in state.json. Keep the newest two checkpoints."""
    tensors = {WEIGHTS: _weights(weights), OPTIMIZER: _optimizer_tensors(weights, optimizer)}
    final = _write(folder / name_of(step), tensors, {"step": step, **state})
    _keep_newest(folder)
    return final


@dataclass(frozen=True, slots=True)
class Writing:
    """A checkpoint whose files a thread writes. `finish` waits for it; all ranks that have begun it must call it."""

    step: int
    running: Callable[[], bool]
    finish: Callable[[], Path]


def begin(
    folder: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Writing:
    """Copy the state to memory, and let a thread write what `save` writes. All ranks must call it."""
    final, state = folder / name_of(step), {"step": step, **state}
    if not any_sharded(weights.masters) and not group.first():
        return Writing(step, lambda: False, lambda: final)  # rank 0 writes it
    tensors = {WEIGHTS: _weights(weights), OPTIMIZER: _optimizer_tensors(weights, optimizer)}
    if any_sharded(weights.masters):
        part, rows, rank = _part_of_all(final), own_rows(_named(tensors), copy=True), group.rank()
        written = InThread(lambda: _write_own(final, part, rows, rank))
        return Writing(step, written.running, lambda: _complete_parts(final, part, written.result(), state))
    copies = {
        file: {n: tensor.to("cpu", copy=True) for n, tensor in values.items()} for file, values in tensors.items()
    }
    path = InThread(lambda: _write(final, copies, state))
    return Writing(step, path.running, path.result)


def complete(writing: Writing) -> Path:
    """Wait until a checkpoint is complete, and return its folder. Keep the newest two. Raises StorageError."""
    final = writing.finish()
    _keep_newest(final.parent)
    return final


def _keep_newest(folder: Path) -> None:
    """On rank 0, delete all checkpoints but the newest two."""
    if group.first():
        for old in surplus(folder):
            shutil.rmtree(old, ignore_errors=True)


def save_weights(path: Path, weights: Weights, state: dict[str, Any]) -> None:
    """Write the weights without the optimizer state to the folder `path`, with `state` in state.json."""
    _write(path, {WEIGHTS: _weights(weights)}, state)


def _write(final: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write files of tensors, and state.json with their hashes, to the folder `final`, and return it."""
    if any_sharded([tensor for values in tensors.values() for tensor in values.values()]):
        return _write_parts(final, tensors, state)
    part = final.with_name(f"{final.name}.part-{os.getpid()}")
    try:
        with writing(final):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, values in tensors.items():
                save_file(values, part / name)
            hashes = {name: digest(part / name) for name in tensors}
            _complete(part, final, {"files": hashes, **state})
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(final.with_name(f"{final.name}{OLD}"), ignore_errors=True)
    return final


def _complete(part: Path, final: Path, state: dict[str, Any]) -> None:
    """Write state.json to the folder `part`, and rename it to `final` when the disk has all of its files."""
    (part / STATE).write_text(json.dumps(sealed(state), indent=1))
    for path in (*(part / name for name in state["files"]), part / STATE, part):
        sync(path)
    if final.exists():  # a damaged checkpoint of this step, or one of a run that was stopped in its evaluation
        os.replace(final, final.with_name(f"{final.name}{OLD}"))
    os.replace(part, final)
    sync(final.parent)


def _part_of_all(final: Path) -> Path:
    """Return the temporary folder of a checkpoint that all ranks write."""
    return group.from_first(lambda: final.with_name(f"{final.name}.part-{os.getpid()}"))


def _named(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all files by their names in a part."""
    return {PREFIX[file] + name: tensor for file, values in tensors.items() for name, tensor in values.items()}


def _write_parts(final: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write weights that are split among ranks: each rank its rows, then rank 0 state.json. All ranks must call it.

    If one rank cannot write, all raise its StorageError.
    """
    part = _part_of_all(final)
    return _complete_parts(final, part, _write_own(final, part, own_rows(_named(tensors)), group.rank()), state)


def _write_own(final: Path, part: Path, rows: Rows, rank: int) -> tuple[str, str] | StorageError | None:
    """Write the rows of one rank, and return the name and the hash of its file; None without rows."""
    try:
        with writing(final):
            part.mkdir(parents=True, exist_ok=True)
            path = write_rows(part, rows, rank)
            if path:
                sync(path)
            return (path.name, digest(path)) if path else None
    except StorageError as error:
        return error


def _complete_parts(
    final: Path, part: Path, written: tuple[str, str] | StorageError | None, state: dict[str, Any]
) -> Path:
    """Write state.json when all ranks have written their rows. All ranks must call it. Raises StorageError."""
    results = group.gather(written)
    problem = next((result for result in results if isinstance(result, StorageError)), None)
    hashes = dict(result for result in results if isinstance(result, tuple))

    def complete() -> None:
        with writing(final):
            if problem:
                shutil.rmtree(part, ignore_errors=True)
                raise problem
            _complete(part, final, {"files": hashes, **state})
        shutil.rmtree(final.with_name(f"{final.name}{OLD}"), ignore_errors=True)

    group.from_first(complete)
    return final


def recover(folder: Path) -> None:
    """Restore the checkpoints that a killed process was about to replace. Raises StorageError."""
    with writing(folder):
        for old in folder.glob(f"*{OLD}"):
            final = old.with_name(old.name.removesuffix(OLD))
            if not final.exists():
                os.replace(old, final)


def _weights(weights: Weights) -> dict[str, Tensor]:
    return {name: _plain(master) for name, master in weights}


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor as safetensors needs it. Of one that is split among ranks, each rank writes its rows."""
    return tensor.detach() if is_dtensor(tensor) else tensor.detach().contiguous()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, which one process or several ranks have written."""
    if (path / WEIGHTS).is_file():
        stored: dict[str, Tensor] = load_file(path / WEIGHTS)
        return stored
    parts = Parts(path)
    return {name: parts.read(f"weights/{name}") for name in parts.names("weights/")}


def step_of(path: Path) -> int:
    """Return the step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-????????"))


def surplus(folder: Path) -> list[Path]:
    """Return all checkpoints in a folder but the newest two. A process that is killed leaves them, perhaps in part."""
    return saved(folder)[:-2]


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
        in_parts = any(name.startswith("part-") for name in state["files"])
        if problem or not (in_parts or set(files) <= set(state["files"])):
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
    for key, value in _optimizer_rows(path, weights).items():
        name, _, field = key.rpartition("/")
        state.setdefault(index[name], {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _optimizer_rows(path: Path, weights: Weights) -> dict[str, Tensor]:
    """Return the optimizer state of a checkpoint, split among ranks as the weights are."""
    values: dict[str, Tensor]
    if not _in_rows(path, weights):
        values = load_file(path / OPTIMIZER)
        return values
    parts, masters, values = Parts(path, PREFIX), dict(weights), {}
    for key in parts.names("optimizer/"):
        full = f"optimizer/{key}"
        like = masters[key.rpartition("/")[0]]
        values[key] = torch.zeros_like(like, dtype=parts.dtype(full)) if parts.shapes[full] else torch.zeros(())
        parts.fill(full, values[key])
    return values


def _in_rows(path: Path, weights: Weights) -> bool:
    """Return whether the weights, or those of the checkpoint, are split among ranks."""
    return any_sharded(weights.masters) or not (path / WEIGHTS).is_file()


def restore_weights(path: Path, weights: Weights) -> None:
    """Load the weights of a checkpoint. Raises RunError if they do not match the model."""
    parts = Parts(path, PREFIX) if _in_rows(path, weights) else None
    saved = {} if parts else load_file(path / WEIGHTS)
    shapes = {name: tuple(master.shape) for name, master in weights}
    stored = {name: tuple(value.shape) for name, value in saved.items()}
    if parts:
        stored = {name: parts.shapes[f"weights/{name}"] for name in parts.names("weights/")}
    if stored != shapes:
        what = "names or shapes of the weights in the checkpoint do not match the model"
        raise RunError(what, where=str(path), fix="restore the files of the model, or set a new folder: out=FOLDER")
    with torch.no_grad():
        for name, master in weights:
            if parts:
                parts.fill(f"weights/{name}", master.detach())
            else:
                master.copy_(saved[name])
    weights.publish()


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{key}": _plain(value)
        for index, name in enumerate(weights.names)
        for key, value in state.get(index, {}).items()
        if isinstance(value, Tensor)
    }
