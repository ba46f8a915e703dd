"""Read the rows of files, folders, patterns, URLs and Hub datasets, each with its origin. No row is skipped here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from preftune import in_memory
from preftune.sources.files import read_file
from preftune.sources.hub import dataset_rows, is_hub_id
from preftune.sources.json_rows import as_row
from preftune.sources.locate import locate
from preftune.sources.remote import RemoteFile
from preftune.sources.rows import Note, Row, Source
from preftune.sources.slices import split_slice


def read(source: str | Sequence[str], note: Note | None = None) -> Iterator[Row]:
    """Yield the rows of `source`: a file, a folder, a pattern, a URL, a Hub id, or a sequence of these.

    `name:split`, `name:config` and `name:config:split` select a part of a folder or of a Hub dataset. The default
    split is `train`. `name[:1000]` selects rows. `note(text, name)` is called for available data that are not read,
    such as a `test` split. Raises DataError if a source does not exist or a file cannot be read. A single unreadable
    line of a JSONL file becomes a Row with a `fault`.
    """
    for name in [source] if isinstance(source, str) else source:
        held = in_memory.rows(name)
        if held:
            yield from (as_row(value, f"{held.label}[{i}]") for i, value in enumerate(held.rows))
            continue
        base, part = split_slice(name)
        located = locate(base)
        for text in located.notes:
            if note:
                note(text, name)
        yield from _all_rows(located) if part is None else part.rows(lambda: _all_rows(located), name)  # noqa: B023


def _all_rows(located: Source) -> Iterator[Row]:
    if located.hub is not None or located.saved:
        yield from dataset_rows(located)
    for path, shown_name in local_files(located):
        yield from read_file(path, shown_name)


def local_files(located: Source) -> tuple[tuple[Path, str], ...]:
    """Return the files of a source, each with its name in origins. Files at URLs are downloaded to the cache folder."""
    return tuple((path.local() if isinstance(path, RemoteFile) else path, name) for path, name in located.files)


def files_of(name: str) -> tuple[tuple[Path, str], ...]:
    """Return the files that a name refers to, each with its name in origins; empty for data sets without such files."""
    return local_files(locate(split_slice(name)[0]))


def require_sources(source: str | Sequence[str]) -> None:
    """Raise DataError for a source that is neither a local path or URL nor possibly a Hub id. Nothing is read."""
    for name in [source] if isinstance(source, str) else source:
        base, _ = split_slice(name)
        if not in_memory.rows(name) and not is_hub_id(base):
            locate(base)


def fingerprint(source: str | Sequence[str]) -> str:
    """Return a hash of the content that `read` reads. Raises DataError as `read` does.

    file                       its bytes
    folder                     names and bytes of the files of the split
    pattern, URL               the bytes of the files, in order
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
        located = locate(split_slice(name)[0])
        if located.hub is not None:
            digest.update(f"{name}\0{getattr(located.hub, '_fingerprint', '')}".encode())
        if located.saved:
            for row in dataset_rows(located):
                digest.update(repr(row.value).encode("utf-8", "surrogatepass"))
        for path, _ in local_files(located):
            if located.root:
                digest.update(f"\0{path.relative_to(located.root).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
