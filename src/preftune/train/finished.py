"""The final model of a finished run: verify it, and make room to write it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preftune.errors import RunError
from preftune.files import changed_files, set_aside
from preftune.train import checkpoint, manifest

Say = Callable[[str], None]


def is_complete(folder: Path, say: Say) -> bool:
    """Return whether `folder` contains a finished run with an intact final model.

    A damaged model is reported. If the run has a checkpoint of its end, the model can be written again from it, else
    RunError is raised.
    """
    facts = manifest.read(folder)
    if not facts.get("finished") or not (folder / "final").is_dir():
        return False
    problem = manifest.final_damage(folder)
    if not problem:
        return True
    newest = checkpoint.newest(folder / "checkpoints", facts)[0]
    if newest is None or newest.name != checkpoint.name_of(facts.get("steps", 0)):
        raise RunError(
            f"the final model is damaged: {problem}",
            where=str(folder),
            why="the run has no checkpoint of its last step, from which the model could be written again",
            fix="restore the files, or delete the folder to train again",
        )
    say(f"{folder}: the final model is damaged ({problem}). It is written again from {newest.name}")
    return False


def set_damaged_aside(folder: Path, say: Say) -> None:
    """Rename the final model of a finished run, and the base of its adapter, if they are damaged."""
    facts = manifest.read(folder)
    if not manifest.final_damage(folder):
        return
    for name in ("final", "base"):
        path = folder / name
        if path.exists() and (changed_files(path, facts.get(name) or {}) or not any(path.iterdir())):
            say(f"{path}: kept as {set_aside(path).name}")
