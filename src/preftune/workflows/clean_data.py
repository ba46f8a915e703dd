"""Copy the rows of a data file that have no finding to another file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import ConfigError, DataError, writing
from preftune.sources.raw import raw_rows
from preftune.sources.read import files_of
from preftune.workflows.check_data import Checked


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What happened to the rows of the training data.

    by_kind   {kind: rows with a finding of this kind}; a row can have several
    unusable  rows that training does not use: dropped rows, and rows that data.where leaves out
    """

    path: Path
    read: int
    written: int
    by_kind: dict[str, int]
    unusable: int

    def lines(self) -> list[str]:
        """Return the counts as text."""
        counts = [f"{kind}: {number}" for kind, number in self.by_kind.items()]
        counts += [f"not used for training: {self.unusable}"]
        return [
            f"{self.path}: {self.written} of {self.read} rows written, {self.read - self.written} left out",
            f"  left out {'; '.join(counts)} (a row can have several findings)",
        ]


def require_other_file(path: Path, source: str | Sequence[str]) -> None:
    """Raise ConfigError if `path` is one of the files of `source`, which would be overwritten."""
    for name in [source] if isinstance(source, str) else source:
        for file, _ in files_of(name):
            if path.exists() and path.samefile(file):
                raise ConfigError("this is the file that is read", where="--write", fix="choose a different file")


def write_clean(path: Path, source: str | Sequence[str], checked: Checked, kinds: Sequence[str]) -> Cleaned:
    """Write the rows of `source` that have no finding of `kinds` to a JSON Lines file, in their order.

    Rows that training does not use are left out and counted. Lines of JSON Lines files stay the same, byte for byte.
    Raises DataError if several rows form one group, because the findings do not say which of them to leave out.
    """
    used = {group.origin for group in checked.groups}
    formats = {account.format for account in checked.train}
    if len(formats) > 1:
        what = (
            f"the sources have different formats ({', '.join(sorted(formats))}), so their rows do not fit in one file"
        )
        raise DataError(what, where=checked.source, fix="check and write each source with a separate command")
    dropped = {o for account in checked.train for origins in account.dropped.values() for o in origins}
    by_kind = {kind: checked.findings.rows([kind]) for kind in kinds}
    defective = set().union(*by_kind.values()) if by_kind else set()
    counts = {"read": 0, "written": 0, "unusable": 0}

    def kept() -> Iterator[bytes]:
        for origin, raw in raw_rows(source):
            counts["read"] += 1
            if origin in dropped or origin not in used:
                if origin not in dropped:
                    raise DataError(
                        "the rows cannot be copied one by one: the format joins several rows to one group",
                        where=origin,
                        fix="write the groups with preftune data convert --to groups, and check that file",
                    )
                counts["unusable"] += 1
            elif origin not in defective:
                counts["written"] += 1
                yield raw

    part = path.with_name(f"{path.name}.part-new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.writelines(kept())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return Cleaned(path, counts["read"], counts["written"], {k: len(v) for k, v in by_kind.items()}, counts["unusable"])
