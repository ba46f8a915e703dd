"""The records that reading passes on: a row of a data file, and what one data name stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a data file. `fault` says why it could not be read, if so."""

    value: dict[str, Any]
    origin: str
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What one data name stands for.

    files    each file with the name that origins show, in reading order
    root     the folder that holds the files, if the name is a folder
    saved    the folder of a dataset that was written by `save_to_disk`
    hub      a dataset that was loaded from the Hub
    notes    what the user should know about data that are there and not read
    """

    name: str
    files: tuple[tuple[Path, str], ...] = ()
    root: Path | None = None
    saved: Path | None = None
    hub: Any = None
    notes: tuple[str, ...] = ()
