"""Read the rows of one data file with the reader for its suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from preftune.errors import DataError
from preftune.sources.compressed import COMPRESSED, READ_ERRORS, AnyFile, file_suffixes
from preftune.sources.json_rows import json_list, jsonl
from preftune.sources.rows import Row
from preftune.sources.tables import arrow, parquet, separated

READERS: dict[str, Callable[[AnyFile, str], Iterator[Row]]] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".json": json_list,
    ".csv": partial(separated, delimiter=","),
    ".tsv": partial(separated, delimiter="\t"),
    ".parquet": parquet,
    ".arrow": arrow,
}
COMPRESSED_INSIDE = (".parquet", ".arrow")  # formats with their own compression: .parquet.gz is not supported
#: A name with one of these suffixes is a local file, never a Hub id.
FILE_SUFFIXES = (*READERS, *COMPRESSED, ".txt")


def is_data_file(name: str) -> bool:
    """Return whether preftune can read a file with this name, judged by its suffix."""
    suffix, compression = file_suffixes(Path(name))
    return suffix in READERS and not (compression and suffix in COMPRESSED_INSIDE)


def read_file(path: AnyFile, name: str) -> Iterator[Row]:
    """Yield the rows of a file; their origins begin with `name`.

    Raises DataError for an unknown suffix and for a file that cannot be read.
    """
    suffix, compression = file_suffixes(path)
    if not is_data_file(path.name):
        unsupported = f"{suffix}{compression} files are not supported"
        what = unsupported if suffix in READERS else f"unknown file type {suffix or '(none)'!r}"
        fix = f"use .jsonl, .json, .csv or .tsv (also compressed: {', '.join(COMPRESSED[:4])}), .parquet or .arrow"
        fix += "; rename a table that is separated by tabs to .tsv" if suffix == ".txt" else ""
        raise DataError(what, where=name, fix=fix)
    try:
        yield from READERS[suffix](path, name)
    except READ_ERRORS as error:
        fix = "the file is damaged or truncated; download or copy it again" if compression else ""
        raise DataError(f"cannot be read: {error}", where=name, fix=fix) from error
