"""Write text, JSON and JSON-lines files so that a crash never leaves a half-written file. Choose the cache folder.

Each file is written under a temporary name in the same folder and then renamed. A lone surrogate, which UTF-8 cannot
encode, is written as an escape such as \\ud83d; JSON decodes it to the same character.

A sealed JSON object has the entry `sha256`, the hash of its other entries, so that damage is noticed when it is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from preftune.errors import RunError, writing

MAX_READS = 1024  # from a MappedFile before its pages are released
SEAL = "sha256"  # the entry of a sealed object with the hash of the others
RECENT_NS = 2 * 10**9
CHECKSUM = "crc"  # the entry of a row of a journal with the checksum of the others


def cache_folder() -> Path:
    """Return $PREFTUNE_CACHE, or the folder preftune in the user's cache folder."""
    own = os.environ.get("PREFTUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else base / "preftune"


def write_text(path: Path, chunks: Iterable[str], *, durable: bool = False) -> None:
    """Write the concatenation of `chunks` to `path`. Raises StorageError.

    `durable`: wait until the disk has the file, so that it survives a power failure.
    """
    part = path.with_name(f"{path.name}.part-new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(chunks)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Any], *, durable: bool = False) -> None:
    """Write one JSON value per line, as `write_text`. Raises StorageError."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write indented JSON, as `write_text`. Raises StorageError."""
    write_text(path, (json.dumps(value, indent=1, ensure_ascii=False), "\n"), durable=durable)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its seal."""
    plain = json.loads(json.dumps({key: entry for key, entry in value.items() if key != SEAL}))  # as it will be read
    return {**plain, SEAL: _seal(plain)}


def _seal(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_sealed(path: Path) -> dict[str, Any]:
    """Return a JSON object, without its seal. Raises OSError if it cannot be read, and ValueError if it is damaged.

    An object without a seal, as earlier versions wrote it, is returned as it is.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise ValueError("its content does not match its hash")
    return value


def sync(path: Path) -> None:
    """Wait until the disk has the file or folder. Raises OSError."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it can be written again, and return its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    with writing(aside):
        os.replace(path, aside)
    return aside


def hashes_of(folder: Path, skip: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of all files in a folder by their relative names, without the files and folders in `skip`."""
    names = set(skip)
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    relative = {file.relative_to(folder): file for file in files}
    return {name.as_posix(): digest(file) for name, file in relative.items() if name.parts[0] not in names}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    A process reads a file again only if it may have changed: a command verifies the weights of a model several times.
    """
    facts = path.stat()
    times = facts.st_mtime_ns, facts.st_ctime_ns
    if time.time_ns() - max(times) < RECENT_NS:  # a change within one tick of the clock would not be seen
        return _digest(path)
    return _kept_digest(path.absolute(), facts.st_dev, facts.st_ino, facts.st_size, *times)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1024)
def _kept_digest(path: Path, *_facts: int) -> str:
    return _digest(path)


def changed_files(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Return the files that differ from `hashes`, with the reason."""
    changed = []
    for name, sha256 in hashes.items():
        try:
            if digest(folder / name) != sha256:
                changed.append(f"{name} has changed")
        except OSError:
            changed.append(f"{name} is missing")
    return changed


class MappedFile:
    """A file that is read through a memory map. Call `count` for each read, so that the process keeps few pages of it.

    Without that, the pages that were read would count as memory of the process until the system needs them.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reads = 0

    def count(self) -> None:
        """Count one read. After every MAX_READS, the pages are released; they are read again when they are needed."""
        self._reads += 1
        if self._reads % MAX_READS == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


def journal_line(row: Any) -> str:
    """Return the line of a row in a journal: an object gets the checksum of its entries."""
    if isinstance(row, dict):
        row = {**row, CHECKSUM: _checksum(json.loads(json.dumps(row)))}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _checksum(row: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(row, sort_keys=True).encode())


class Journal:
    """An append-only JSON-lines file. Each row is written to the file before `add` returns.

    `rows` holds the rows that the file had when it was opened. An incomplete last line, as after a crash, is removed;
    `removed` is its number of bytes. Each row that is an object has a checksum in the file. Raises RunError if another
    line is not valid JSON, or does not match its checksum. Earlier versions wrote no checksums; such rows come first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.is_file() else b""
        complete = data[: data.rfind(b"\n") + 1]
        self.rows: list[Any] = []
        checked = False
        for number, line in enumerate(complete.split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line.decode())
                checksum = row.pop(CHECKSUM, None) if isinstance(row, dict) else None
                checked |= checksum is not None
                if isinstance(row, dict) and checked and checksum != _checksum(row):
                    raise ValueError("the line does not match its checksum")
            except ValueError as error:
                where, fix = f"{path}:{number}", "remove the line to redo its request"
                raise RunError(f"invalid JSON: {error}", where=where, fix=fix) from error
            self.rows.append(row)
        self.removed = len(data) - len(complete)
        with writing(path):
            if self.removed:
                os.truncate(path, len(data) - self.removed)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def add(self, row: Any) -> None:
        """Append one row. Raises StorageError; the file then has no part of the row."""
        data = journal_line(row).encode("utf-8", errors="backslashreplace")
        with writing(self.path):
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                os.ftruncate(self._file.fileno(), size)
                raise

    def sync(self) -> None:
        """Wait until the disk has all rows, so that they survive a power failure. Raises StorageError."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. It is also the end of the context."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
