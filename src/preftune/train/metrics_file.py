"""metrics.jsonl: lines are appended during training, and verified when the run resumes.

A checkpoint has the length and the hash of the file at its step. A resumed run cuts the file to this length, so that
it ends with the lines of an uninterrupted one. Lines that the disk does not take wait in memory and in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import StorageError, writing
from preftune.files import set_aside, sync, write_text

NAME = "metrics.jsonl"


def valid_lines(data: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the lines of a metrics file, and the numbers of those that are not metrics."""
    lines, damaged = [], []
    for number, text in enumerate(data.splitlines(), start=1):
        try:
            line = json.loads(text.decode())
            if not isinstance(line["step"], int) or line["split"] not in ("train", "eval"):
                raise ValueError("not a line of metrics")
            lines.append(line)
        except (ValueError, LookupError, TypeError):
            damaged.append(number)
    return lines, damaged


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the metrics of a run, without damaged ones; empty without a file."""
    path = folder / NAME
    return valid_lines(path.read_bytes())[0] if path.is_file() else []


class MetricsFile:
    """The metrics of a run. `waiting` are lines that are not on disk yet."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = folder / NAME, say
        self.waiting: list[str] = []
        self._lines: list[dict[str, Any]] = []  # of the first _size bytes of the file
        self._size = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line. If it cannot be written, report this once, and try again with the next line."""
        reported = bool(self.waiting)
        self.waiting.append(json.dumps(line) + "\n")
        try:
            self.flush()
        except StorageError as error:
            if not reported:
                self.say(f"{error}\n  the run continues; the metrics are kept in memory until they can be written")

    def flush(self) -> None:
        """Write the waiting lines. The file never has a part of a line. Raises StorageError."""
        if not self.waiting:
            return
        data = "".join(self.waiting).encode()
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(data) != len(data):
                    raise OSError("the disk is full")
            except BaseException:
                os.ftruncate(file.fileno(), size)
                raise
        self.waiting.clear()

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines, without damaged ones."""
        data = self._read()
        self._lines += valid_lines(data[self._size :])[0]
        self._size = len(data)
        return [*self._lines, *valid_lines("".join(self.waiting).encode())[0]]

    def position(self) -> dict[str, Any]:
        """Return the length and hash of the file, and the waiting lines, after the disk has the file.

        Raises StorageError.
        """
        data = self._read()
        if data:
            with writing(self.path):
                sync(self.path)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "waiting": list(self.waiting)}

    def rewind(self, position: Mapping[str, Any] | None, step: int, evaluation_due: bool) -> None:
        """Restore the lines of the checkpoint of `step`, whose `position` is None in checkpoints of earlier versions.

        If the file was damaged, keep it under a different name, and continue with the lines that can be read.
        """
        data = self._read()
        if position is not None:
            before = data[: position["bytes"]]
            if hashlib.sha256(before).hexdigest() == position["sha256"]:
                self._replace(before + "".join(position["waiting"]).encode())
                return
        lines, damaged = valid_lines(data)
        repeated = [line for line in lines if evaluation_due and line["step"] == step and line["split"] == "eval"]
        kept = [line for line in lines if line["step"] <= step and step > 0 and line not in repeated]
        if position is not None:
            where = f"; the damaged file is now {set_aside(self.path).name}" if self.path.exists() else ""
            numbers = f" {len(damaged)} lines cannot be read." if damaged else ""
            self.say(
                f"{self.path}: the file was changed or damaged after it was written.{numbers} The weights do not "
                f"depend on it, so the run continues with the {len(kept)} lines that can be read{where}"
            )
        self._replace("".join(json.dumps(line) + "\n" for line in kept).encode())

    def _read(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""

    def _replace(self, data: bytes) -> None:
        if data != self._read():
            write_text(self.path, [data.decode()])
        self._lines, self._size = [], 0
