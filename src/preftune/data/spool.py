"""Collect groups in a list, or in a file if there are many of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from preftune.data.text_file import TextFile, TextWriter
from preftune.types import PreferenceGroup

SMALL = 1000  # groups that stay in memory: they are read and tokenised in about a second
SMALL_BYTES = 1 << 23  # of text


class Spool:
    """Collects groups of text. Without a `path`, all of them stay in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._groups: list[PreferenceGroup] = []
        self._bytes = 0
        self._writer: TextWriter | None = None

    def add(self, group: PreferenceGroup) -> None:
        """Append a group. Raises StorageError."""
        if self._writer:
            self._writer.add(group)
            return
        self._groups.append(group)
        if self.path is not None:
            self._bytes += TextWriter.size(group)
            if len(self._groups) > SMALL or self._bytes > SMALL_BYTES:
                self._writer = TextWriter(self.path)
                for earlier in self._groups:
                    self._writer.add(earlier)
                self._groups = []

    def groups(self) -> Sequence[PreferenceGroup]:
        """Return all groups: a list, or a file."""
        if self._writer is None:
            return self._groups
        self._writer.close()
        assert self.path
        return TextFile(self.path)


def rewritten(groups: Iterable[PreferenceGroup], old: Sequence[PreferenceGroup]) -> Sequence[PreferenceGroup]:
    """Return `groups`, which are made of `old`, as what `old` is: a list, or a file that replaces it."""
    if not isinstance(old, TextFile):
        return list(groups)
    return write_text(groups, old.path)


def write_text(groups: Iterable[PreferenceGroup], path: Path) -> TextFile:
    """Write groups to a file, which may be the one that they are read from. Raises StorageError."""
    new = path.with_suffix(".new")
    writer = TextWriter(new)
    for group in groups:
        writer.add(group)
    writer.close()
    new.replace(path)
    return TextFile(path)
