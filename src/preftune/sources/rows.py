"""Records that the readers return: a row of a data file, and the data that a name refers to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Note = Callable[[str, str], None]  # called with a message to the user and an origin


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a data file. If it could not be read, `fault` says why.

    `others` are the origins of the further records of the file that were joined into this one.
    """

    value: dict[str, Any]
    origin: str
    fault: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The data that one name refers to.

    files    (path or RemoteFile, name shown in origins) of each file, in reading order
    root     the folder that contains the files, if the name is a folder
    saved    the folder of a dataset that `save_to_disk` wrote
    hub      a dataset that was loaded from the Hub
    notes    messages to the user about available data that are not read
    stamp    the commit of a Hub dataset that is streamed
    """

    name: str
    files: tuple[tuple[Any, str], ...] = ()
    root: Path | None = None
    saved: Path | None = None
    hub: Any = None
    notes: tuple[str, ...] = ()
    stamp: str = ""
