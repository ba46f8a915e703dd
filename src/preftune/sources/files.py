"""Rows of one data file, by its suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from preftune.errors import DataError
from preftune.sources.compressed import COMPRESSED, DAMAGED, kind_of
from preftune.sources.json_rows import json_list, jsonl
from preftune.sources.rows import Row
from preftune.sources.tables import arrow, comma_separated, parquet, tab_separated

READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".json": json_list,
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".parquet": parquet,
    ".arrow": arrow,
}
WHOLE = (".parquet", ".arrow")  # compressed inside; not read out of a compressed file
#: A name that ends so is meant as a file.
FILE_SUFFIXES = (*READERS, *COMPRESSED, ".txt")


def is_data_file(name: str) -> bool:
    """Whether the suffix of a file's name is one that is read."""
    kind, packed = kind_of(Path(name))
    return kind in READERS and not (packed and kind in WHOLE)


def read_file(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file; origins begin with `name`.

    Raises DataError for a suffix that is not known and for a file that cannot be read as a whole.
    """
    kind, packed = kind_of(path)
    if not is_data_file(path.name):
        what = f"{kind}{packed} files are not read" if kind in READERS else f"unknown file type {kind or '(none)'!r}"
        fix = f"use .jsonl, .json, .csv or .tsv (also with {', '.join(COMPRESSED[:4])}), .parquet or .arrow"
        raise DataError(what, where=name, fix=fix)
    try:
        yield from READERS[kind](path, name)
    except DAMAGED as error:
        fix = "the file is damaged or cut short: get it again" if packed else ""
        raise DataError(f"cannot be read: {error}", where=name, fix=fix) from error
