"""Names of files, folders and Hub datasets -> rows, each with the place it came from. Nothing is skipped here."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from preftune import objects
from preftune.errors import DataError
from preftune.sources.files import read_file
from preftune.sources.folders import folder_source
from preftune.sources.hub import hub_rows, hub_source, is_hub_id, saved_rows
from preftune.sources.json_rows import as_row
from preftune.sources.rows import Row, Source

__all__ = ["Row", "fingerprint", "read"]

Note = Callable[[str, str], None]


def read(source: str | Sequence[str], note: Note | None = None) -> Iterator[Row]:
    """The rows of `source`: a file, a folder, a Hub id, or several of them.

    `name:split`, `name:config` and `name:config:split` name a part of a folder or of a Hub dataset; `train` is read if
    the name does not say more. `note(text, name)` is called for what is there and not read, such as a `test` split.

    Raises DataError if there is no such thing or the file as a whole cannot be read; a single unreadable
    line of a JSONL file becomes a Row with a `fault`.
    """
    for name in [source] if isinstance(source, str) else source:
        held = objects.rows(name)
        if held:
            yield from (as_row(value, f"{held.label}[{i}]") for i, value in enumerate(held.rows))
            continue
        one = _find(name)
        for text in one.notes:
            if note:
                note(text, name)
        if one.hub is not None:
            yield from hub_rows(one)
        elif one.saved:
            yield from saved_rows(one)
        else:
            for path, shown in one.files:
                yield from read_file(path, shown)


def fingerprint(source: str | Sequence[str]) -> str:
    """A hash of the content that `read` reads.

    The bytes of a file; for a folder the names and bytes of the files of the split; for a dataset written by
    `save_to_disk` its rows, as its files also hold random names; for a Hub dataset its name and the fingerprint that
    `datasets` computes from commit, config and split. Raises DataError as `read` does.
    """
    digest = hashlib.sha256()
    for name in [source] if isinstance(source, str) else source:
        digest.update(b"\0source\0")
        held = objects.rows(name)
        if held:
            digest.update(held.digest.encode())
            continue
        one = _find(name)
        if one.hub is not None:
            digest.update(f"{name}\0{getattr(one.hub, '_fingerprint', '')}".encode())
        if one.saved:
            for row in saved_rows(one):
                digest.update(repr(row.value).encode("utf-8", "surrogatepass"))
        for path, _ in one.files:
            if one.root:
                digest.update(f"\0{path.relative_to(one.root).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _find(name: str) -> Source:
    """What a name stands for. Raises DataError if it is nothing on this machine and cannot be meant for the Hub."""
    path = _local(name)
    if path.is_file():
        return Source(name, ((path, name),))
    for cut in range(3):
        target, *parts = name.rsplit(":", cut)
        if len(parts) < cut:
            break
        folder = _local(target)
        if folder.is_dir():
            return folder_source(folder, target, parts)
        if cut and folder.is_file():
            raise DataError("a file has no configs or splits", where=name, fix=f"write {target}")
    if is_hub_id(name):
        return hub_source(name)
    raise DataError("no such file", where=name, fix=_nearby(path))


def _local(name: str) -> Path:
    """The path that a name means on this machine."""
    if not name.strip():
        raise DataError("no file: the name is empty", where="data")
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, no permission, no such user
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=name[:200]) from None
    return path


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to where the command runs"
    try:
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError:
        return f"the folder {path.parent} cannot be read"
    near = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"in {path.parent} there is: {', '.join(near) or 'nothing'}"
