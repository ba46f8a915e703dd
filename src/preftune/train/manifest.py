"""manifest.json of a run folder: what the run is, and the hashes of files that are read again.

    manifest.json     sealed (see files): identity, versions, facts about the run, and
                      `checkpoints`  hash of the state.json of each checkpoint, which has the hashes of its other files
                      `final`        hashes of the files of the final model, once the run is finished
                      `parts`        hashes of the files that `preftune iterate` and `data noise` read when they resume
    .manifest.json    a copy, which is used if manifest.json is damaged or missing

A damaged file is renamed to NAME.damaged-N, never deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from preftune.errors import RunError, StorageError
from preftune.files import changed_files, digest, hashes_of, read_sealed, sealed, set_aside, write_json

NAME, COPY = "manifest.json", ".manifest.json"
CARD = ("README.md", "figures")  # in `final`: the model card, which other commands may change


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of the run in `folder`; empty if there is no run. Raises RunError if it is damaged."""
    return _read(folder)[0]


def damage(folder: Path) -> str:
    """Return why the copy of the manifest is used, or ""."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        return read_sealed(folder / NAME), ""
    except NotADirectoryError:
        return {}, ""
    except FileNotFoundError:
        problem = "the file is missing"
    except (OSError, ValueError) as error:
        problem = f"the file is damaged: {error}"
    with suppress(OSError, ValueError):
        return read_sealed(folder / COPY), problem
    if not (folder / NAME).exists():
        return {}, ""
    fix = "restore the file, choose a different `out`, or delete the folder"
    raise RunError(problem, where=str(folder / NAME), why=f"its copy {COPY} cannot be used either", fix=fix)


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and its copy. Raises StorageError.

    The copy is first, except in a new folder: a manifest that says "finished" is then the last file of a run, and a
    kill leaves no part of a file that no later command deletes.
    """
    for name in (COPY, NAME) if (folder / NAME).exists() else (NAME, COPY):
        write_json(folder / name, sealed(manifest), durable=name == NAME)


def repair(folder: Path, say: Callable[[str], None]) -> None:
    """Replace a damaged or missing manifest by its copy, and print what was wrong with it. Raises StorageError."""
    manifest, problem = _read(folder)
    if not problem:
        return
    path = folder / NAME
    kept = f"; the damaged file is now {set_aside(path).name}" if path.exists() else ""
    write_json(path, sealed(manifest), durable=True)
    say(f"{path}: {problem}. Its copy {COPY} is used{kept}")


def model_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of the files of a model folder, without its model card."""
    return hashes_of(folder, CARD)


def final_damage(folder: Path) -> str:
    """Return what is wrong with the final model of the finished run in `folder`, or ""."""
    manifest = read(folder)
    if (folder / "final").is_dir() and not any((folder / "final").iterdir()):
        return "final is empty"
    changed = [
        f"{name}/{problem}"
        for name in ("final", "base")
        for problem in changed_files(folder / name, manifest.get(name) or {})
    ]
    return ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


class Parts:
    """The files that a command of several parts has completed. A part that was damaged since then is made again."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say

    def done(self, path: Path, *others: Path) -> bool:
        """Return whether `path` is complete. A damaged one is set aside with `others`, and reported."""
        if not path.is_file():
            return False
        hashes: dict[str, str] = read(self.folder).get("parts") or {}
        if hashes.get(self._name(path)) in (None, digest(path)):
            return True
        kept = [set_aside(file).name for file in (path, *others) if file.exists()]
        self.say(f"{path}: the file has changed since it was written. It is made again; kept as {', '.join(kept)}")
        return False

    def record(self, *paths: Path) -> None:
        """Store the hashes of complete files in the manifest. A manifest that cannot be written is reported."""
        manifest = read(self.folder)
        hashes = {self._name(path): digest(path) for path in paths if path.is_file()}
        parts = {**(manifest.get("parts") or {}), **hashes}
        if parts == manifest.get("parts"):
            return
        try:
            write(self.folder, {**manifest, "parts": parts})
        except StorageError as error:
            self.say(f"{error}\n  the command continues")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def run_identity(config: dict[str, Any], data: str, others: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what must be the same when a run resumes: config, fingerprint of the data, and `others` by name."""
    return {"config": config, "data": data, **(others or {})}
