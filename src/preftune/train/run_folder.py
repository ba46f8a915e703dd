"""Whether a run folder may be used by a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from preftune.errors import RunError, require_writable
from preftune.locks import require_free
from preftune.train import checkpoint, manifest
from preftune.train.same_run import (
    asks_for_more,
    different_start,
    no_checkpoint,
    require_empty,
    require_same,
    with_defaults,
)


def finished(folder: Path) -> bool:
    """Return whether `folder` contains a finished run."""
    return (folder / "final").is_dir() and manifest.read(folder).get("finished", False)


def require_start(folder: Path, weights_hash: str) -> None:
    """Raise RunError if the run in `folder` started from different weights."""
    if manifest.read(folder).get("start_weights") not in (None, weights_hash):
        raise different_start(folder, finished(folder))


def extends(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether `folder` contains a finished run, and the config of `identity` asks for more steps of it."""
    return finished(folder) and asks_for_more(manifest.read(folder), identity["config"])


def check(
    folder: Path, identity: dict[str, Any], schema: type[BaseModel] | None = None, *, extendable: bool = False
) -> None:
    """Raise RunError if `folder` contains anything but this run, or if another command uses it.

    Raises StorageError if it cannot be written. Nothing is written. `schema` is the class of the run's config;
    settings that are missing in the folder's config, because an earlier version wrote it, get their defaults from
    it. `extendable`: the run may be a finished one with fewer steps.
    """
    facts = manifest.read(folder)
    if facts:
        if "identity" not in facts:
            what = "manifest.json does not describe a run"
            raise RunError(what, where=str(folder), fix="choose a different `out`")
        before = {**facts["identity"], "config": with_defaults(facts["identity"]["config"], schema)}
        longer = extendable and extends(folder, identity)
        require_same(before, identity, folder, facts, longer)
        if longer and not checkpoint.saved(folder / "checkpoints"):
            raise no_checkpoint(folder)
    else:
        require_empty(folder)
    require_free(folder)
    require_writable(folder)
