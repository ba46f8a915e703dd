"""The rows of a source as lines of JSON, to copy some of them to another file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from preftune import in_memory
from preftune.errors import DataError
from preftune.sources.compressed import file_suffixes
from preftune.sources.files import READERS
from preftune.sources.json_rows import jsonl, lines
from preftune.sources.read import files_of, read


def raw_rows(source: str | Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the origin of each row of `source`, and the row as one line.

    A row of a JSON Lines file is the line itself, byte for byte. Rows of other files are written as JSON. Raises
    DataError as `read` does, and for a value that JSON cannot represent.
    """
    for name in [source] if isinstance(source, str) else source:
        files = () if in_memory.rows(name) else files_of(name)
        if files and all(READERS.get(file_suffixes(path)[0]) is jsonl for path, _ in files):
            for path, shown_name in files:
                for origin, raw in lines(path, shown_name):
                    yield origin, raw if raw.endswith(b"\n") else raw + b"\n"
            continue
        for row in read(name):
            try:
                text = json.dumps(row.value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                fix = "convert the file to JSON Lines first"
                raise DataError(f"the row cannot be written as JSON: {error}", where=row.origin, fix=fix) from error
            # a lone surrogate becomes the escape that JSON reads as the same character
            yield row.origin, text.encode("utf-8", "backslashreplace") + b"\n"
