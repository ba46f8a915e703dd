"""The parts of a source that is streamed: files, or shards of a Hub dataset, whose rows are read while training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from preftune import in_memory
from preftune.errors import DataError
from preftune.sources.files import read_file
from preftune.sources.hub import dataset_rows
from preftune.sources.json_rows import as_row
from preftune.sources.locate import locate
from preftune.sources.remote import RemoteFile
from preftune.sources.rows import Row, Source
from preftune.sources.slices import split_slice


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a source, in reading order. Each is a function that reads its rows from the first one on.

    stamp   a hash that changes if the content does: the names, sizes and dates of local files, what the server says
            about remote files, the commit of a Hub dataset
    """

    name: str
    parts: tuple[Callable[[], Iterator[Row]], ...]
    stamp: str

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all parts."""
        for part in self.parts:
            yield from part()


def parts_of(name: str) -> Parts:
    """Return the parts of a source. Nothing is downloaded. Raises DataError if the source does not exist, and for a
    slice that needs the number of rows."""
    held = in_memory.rows(name)
    if held:
        rows, label = held.rows, held.label
        return Parts(name, (lambda: (as_row(v, f"{label}[{i}]") for i, v in enumerate(rows)),), held.digest)
    base, part = split_slice(name)
    located = locate(base, stream=True)
    whole = Parts(name, tuple(_parts(located)), _stamp(located))
    if part is None:
        return whole
    if part.needs_total:
        fix = "write row numbers that do not count from the end, such as name[:1000], or remove data.stream"
        raise DataError(f"the slice {part} needs the number of rows, which a stream does not have", where=name, fix=fix)
    begin, end = part.bounds(None)
    return Parts(name, (lambda: islice(whole.rows(), begin, end),), whole.stamp)


def _parts(located: Source) -> Iterator[Callable[[], Iterator[Row]]]:
    if located.hub is not None:
        number = int(located.hub.num_shards)
        for index in range(number):
            yield partial(_shard, located.hub, located.name, index, number)
    if located.saved:
        yield partial(dataset_rows, located)
    for path, shown_name in located.files:
        yield partial(read_file, path, shown_name)


def _shard(dataset: Any, name: str, index: int, number: int) -> Iterator[Row]:
    """Yield the rows of one shard of a Hub dataset; an origin has the numbers of the shard and of the row."""
    shard = dataset.shard(num_shards=number, index=index) if number > 1 else dataset
    where = f"{name}:shard-{index}"
    try:
        for row, value in enumerate(shard, start=1):
            yield Row(dict(value), f"{where}:{row}")
    except Exception as error:  # datasets raises errors of many types when a request fails
        what = f"cannot be read: {str(error).strip() or type(error).__name__}".splitlines()[0]
        raise DataError(what, where=where, fix="check the connection, and rerun the command to resume") from error


def _stamp(located: Source) -> str:
    digest = hashlib.sha256(located.stamp.encode())
    paths: list[Any] = [path for path, _ in located.files]
    if located.saved:
        paths += sorted(path for path in located.saved.iterdir() if path.is_file())
    for path in paths:
        if isinstance(path, RemoteFile):
            digest.update(f"\0{path.url}\0{path.stamp}".encode())
        else:
            digest.update(f"\0{path.name}\0{Path(path).stat().st_size}\0{Path(path).stat().st_mtime_ns}".encode())
    return digest.hexdigest()
