"""Files that are whole or not there: each is written beside its place and moved into it.

Half a character (a lone surrogate) has no UTF-8: it is written as \\ud83d, which JSON reads as what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preftune.errors import RunError, writing


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write pieces of text one after another. Raises StorageError."""
    part = path.with_name(f"{path.name}.part-new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines. Raises StorageError."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Write JSON to be read by people too. Raises StorageError."""
    write_text(path, (json.dumps(value, indent=1, ensure_ascii=False), "\n"))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Journal:
    """JSON lines that grow, each in the file before the next. Of a line that a crash cut in half nothing is kept.

    Raises RunError for a line that is no JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = path.read_bytes() if path.is_file() else b""
        whole = found[: found.rfind(b"\n") + 1].decode()
        self.rows = [self._read(number, line) for number, line in enumerate(whole.split("\n")[:-1], start=1)]
        if len(whole.encode()) < len(found):
            write_text(path, [whole])
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def _read(self, number: int, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise RunError(
                f"a damaged line: {error}", where=f"{self.path}:{number}", fix="remove it; what it had is asked again"
            ) from error

    def add(self, row: Any) -> None:
        """Keep one more. Raises StorageError."""
        with writing(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
