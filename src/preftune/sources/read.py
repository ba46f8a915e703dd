"""Read the rows of files, folders and Hub datasets, each with its origin. No row is skipped here."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from preftune import in_memory
from preftune.errors import DataError
from preftune.sources.files import read_file
from preftune.sources.folders import folder_source
from preftune.sources.hub import dataset_rows, hub_source, is_hub_id
from preftune.sources.json_rows import as_row
from preftune.sources.rows import Note, Row, Source


def read(source: str | Sequence[str], note: Note | None = None) -> Iterator[Row]:
    """Yield the rows of `source`: a file, a folder, a Hub id, or a sequence of these.

    `name:split`, `name:config` and `name:config:split` select a part of a folder or of a Hub dataset. The default
    split is `train`. `note(text, name)` is called for available data that are not read, such as a `test` split.
    Raises DataError if a source does not exist or a file cannot be read. A single unreadable line of a JSONL file
    becomes a Row with a `fault`.
    """
    for name in [source] if isinstance(source, str) else source:
        held = in_memory.rows(name)
        if held:
            yield from (as_row(value, f"{held.label}[{i}]") for i, value in enumerate(held.rows))
            continue
        located = _locate(name)
        for text in located.notes:
            if note:
                note(text, name)
        if located.hub is not None or located.saved:
            yield from dataset_rows(located)
        for path, shown_name in located.files:
            yield from read_file(path, shown_name)


def files_of(name: str) -> tuple[tuple[Path, str], ...]:
    """Return the files that a name refers to, each with its name in origins; empty for data sets without such files."""
    return _locate(name).files


def require_sources(source: str | Sequence[str]) -> None:
    """Raise DataError for a source that is neither a local path nor possibly a Hub id. Nothing is read."""
    for name in [source] if isinstance(source, str) else source:
        if not in_memory.rows(name) and not is_hub_id(name):
            _locate(name)


def fingerprint(source: str | Sequence[str]) -> str:
    """Return a hash of the content that `read` reads. Raises DataError as `read` does.

    file                       its bytes
    folder                     names and bytes of the files of the split
    `save_to_disk` dataset     its rows, because its files also contain random names
    Hub dataset                its name and the fingerprint that `datasets` computes from commit, config and split
    """
    digest = hashlib.sha256()
    for name in [source] if isinstance(source, str) else source:
        digest.update(b"\0source\0")
        held = in_memory.rows(name)
        if held:
            digest.update(held.digest.encode())
            continue
        located = _locate(name)
        if located.hub is not None:
            digest.update(f"{name}\0{getattr(located.hub, '_fingerprint', '')}".encode())
        if located.saved:
            for row in dataset_rows(located):
                digest.update(repr(row.value).encode("utf-8", "surrogatepass"))
        for path, _ in located.files:
            if located.root:
                digest.update(f"\0{path.relative_to(located.root).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _locate(name: str) -> Source:
    """Find the data that a name refers to. Raises DataError if it is not a local path and cannot be a Hub id."""
    path = _local_path(name)
    if path.is_file():
        return Source(name, ((path, name),))
    for number_of_parts in range(3):
        target, *parts = name.rsplit(":", number_of_parts)
        if len(parts) < number_of_parts:
            break
        folder = _local_path(target)
        if folder.is_dir():
            return folder_source(folder, target, parts)
        if number_of_parts and folder.is_file():
            raise DataError("a file has no configs or splits", where=name, fix=f"write {target}")
    if is_hub_id(name):
        return hub_source(name)
    raise DataError("no such file", where=name, fix=_similar_files(path))


def _local_path(name: str) -> Path:
    """Return the local path of a name."""
    if not name.strip():
        raise DataError("the name of a file is empty", where="data", fix="set data.train=FILE")
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # name too long, permission denied, or unknown user in ~user
        what = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, where=name[:200], fix="check the path and its permissions") from None
    return path


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to the current folder"
    try:
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError:
        return f"the folder {path.parent} cannot be read"
    similar = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"check the path; the folder {path.parent} contains {', '.join(similar) or 'no files'}"
