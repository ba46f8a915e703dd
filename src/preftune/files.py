"""Write text, JSON and JSON-lines files so that a crash never leaves a half-written file. Choose the cache folder.

Each file is written under a temporary name in the same folder and then renamed. A lone surrogate, which UTF-8 cannot
encode, is written as an escape such as \\ud83d; JSON decodes it to the same character.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preftune.errors import RunError, writing

MAX_READS = 1024  # from a MappedFile before its pages are released


def cache_folder() -> Path:
    """Return $PREFTUNE_CACHE, or the folder preftune in the user's cache folder."""
    own = os.environ.get("PREFTUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else base / "preftune"


def write_text(path: Path, chunks: Iterable[str]) -> None:
    """Write the concatenation of `chunks` to `path`. Raises StorageError."""
    part = path.with_name(f"{path.name}.part-new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(chunks)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line. Raises StorageError."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON. Raises StorageError."""
    write_text(path, (json.dumps(value, indent=1, ensure_ascii=False), "\n"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


class Journal:
    """An append-only JSON-lines file. Each row is flushed to the file before `add` returns.

    `rows` holds the rows that the file had when it was opened. An incomplete last line, as after a crash, is removed;
    `removed` is its number of bytes. Raises RunError if any other line is not valid JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.is_file() else b""
        complete = data[: data.rfind(b"\n") + 1].decode()
        self.rows: list[Any] = []
        for number, line in enumerate(complete.split("\n")[:-1], start=1):
            try:
                self.rows.append(json.loads(line))
            except ValueError as error:
                where, fix = f"{path}:{number}", "remove the line to redo its request"
                raise RunError(f"invalid JSON: {error}", where=where, fix=fix) from error
        self.removed = len(data) - len(complete.encode())
        with writing(path):
            if self.removed:
                os.truncate(path, len(data) - self.removed)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def add(self, row: Any) -> None:
        """Append one row. Raises StorageError."""
        with writing(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

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
