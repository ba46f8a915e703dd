"""Find the weight files of a model folder or Hub model. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES_RUN_CODE = "pickle files can run code when they are loaded"


def weight_files(base: str, revision: str | None = None) -> list[Path]:
    """Return the safetensors files of a model; an empty list for a Hub model that cannot be downloaded.

    Raises ModelError if the folder has no weights, lacks a shard, or has an index that names a file outside of it.
    """
    folder = Path(base)
    if not folder.is_dir():
        return _hub_files(base, revision)
    configured = _config(folder).get("transformers_weights")
    if configured is not None and configured not in (SINGLE, INDEX):
        fix = f"rename the file to {SINGLE} and delete transformers_weights from config.json"
        raise ModelError(f"config.json has transformers_weights: {configured!r}", where=base, fix=fix)
    if (folder / SINGLE).is_file() and configured != INDEX:
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        present = sorted(path.name for path in folder.glob("*.safetensors"))
        why = f"the folder has {shortened(present)}" if present else ""
        fix = f"rename the weight file to {SINGLE}"
        raise ModelError(f"the folder has neither {SINGLE} nor {INDEX}", where=base, why=why, fix=fix)
    names = shards_of(folder / INDEX)
    for name in names:
        _require_inside(folder, name)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing: {shortened(missing)}",
            where=base,
            why=f"{INDEX} lists these files",
            fix="copy the missing files into the folder",
        )
    return [folder / name for name in names]


def _hub_files(base: str, revision: str | None) -> list[Path]:
    from transformers.utils import cached_file

    errors = ("missing_entries", "gated_repo", "connection_errors")
    options: dict[str, Any] = {f"_raise_exceptions_for_{name}": False for name in errors}
    try:
        for name in (SINGLE, INDEX):
            path = cached_file(base, name, revision=revision, **options)
            if path and name == SINGLE:
                return [Path(path)]
            if path:
                names = shards_of(Path(path))
                shards = [cached_file(base, shard, revision=revision, **options) for shard in names]
                return [Path(shard) for shard in shards if shard]
    except OSError:
        pass  # from_pretrained reports the cause
    return []


def shards_of(index: Path) -> list[str]:
    """Return the files in a shard index. Raises ModelError for a path that leads outside of the index's folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        plain = all(isinstance(name, str) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the file is not a valid shard index: {type(error).__name__}: {error}"
        raise ModelError(what, where=str(index), fix="save the model again") from error
    for name in names if plain else []:
        parts = re.split(r"[/\\]", name)
        if Path(name).is_absolute() or ".." in parts or ":" in parts[0] or parts[0] in ("", "~"):
            raise _outside(index, name)
    if not names:
        raise ModelError("the index does not list any files", where=str(index), fix="save the model again")
    wrong = [str(name) for name in names if not plain or not name.endswith(".safetensors")]
    if wrong:
        what = f"the index lists files that are not safetensors: {shortened(wrong)}"
        raise ModelError(what, where=str(index), why=PICKLES_RUN_CODE, fix="convert the weights to safetensors")
    return names


def _require_inside(folder: Path, name: str) -> None:
    """Raise ModelError if a shard is a link to a file outside of the folder; links in the Hub's cache are allowed."""
    real, home = (folder / name).resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.is_relative_to(blobs)):
        raise _outside(folder / INDEX, name)


def _outside(index: Path, name: str) -> ModelError:
    return ModelError(
        f"the index lists a file outside of its folder: {name}",
        where=str(index),
        why="preftune reads weights only from the model's folder",
        fix="copy the file into the folder and list it without a path",
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def shortened(names: Sequence[str], limit: int = 4) -> str:
    """Return the first `limit` names, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
