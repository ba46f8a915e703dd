"""Groups in Arrow files that are read through a memory map, so that their number is not limited by memory.

A file has one row per group, in record batches of about 1,000 groups. `text_file` and `token_file` define the columns
of prompts and responses; both have these:

    judgements   list of {better, worse: int32; weight, probability, margin: float64}
    labels       list of int8
    ranks        list of float64
    origin       bytes
    source       int16
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from preftune.data.subset import Subset
from preftune.errors import writing
from preftune.files import MappedFile
from preftune.types import Judgement, PreferenceGroup, TokenGroup

if TYPE_CHECKING:
    import pyarrow

G = TypeVar("G", PreferenceGroup, TokenGroup)
BATCH = 1024  # groups in a record batch
BATCH_BYTES = 1 << 24  # of text or token ids, after which a record batch ends early
FIX = "free disk space, or set PREFTUNE_CACHE to a different folder"
FLOATS = ("weight", "probability", "margin")


def encode(text: str) -> bytes:
    """Encode any text of Python, even half a character."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: Any) -> str:
    return str(data, "utf-8", "surrogatepass")


class Writer(ABC, Generic[G]):
    """Writes groups to an Arrow file. `columns` converts the prompts and responses of many groups to Arrow arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: list[G] = []
        self._bytes = 0
        self._file: Any = None

    @abstractmethod
    def columns(self, groups: Sequence[G]) -> dict[str, Any]:
        """Return the columns of prompts and responses."""

    @staticmethod
    @abstractmethod
    def size(group: G) -> int:
        """Return the approximate number of bytes of a group."""

    def add(self, group: G) -> None:
        """Append a group. Raises StorageError."""
        self._groups.append(group)
        self._bytes += self.size(group)
        if len(self._groups) == BATCH or self._bytes > BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Complete the file. Raises StorageError."""
        self._flush()
        if self._file:
            with writing(self.path, FIX):
                self._file.close()

    def _flush(self) -> None:
        import pyarrow

        groups = self._groups
        if not groups and self._file:
            return
        columns = self.columns(groups) | _annotations(groups)
        batch = pyarrow.RecordBatch.from_arrays(list(columns.values()), list(columns))
        with writing(self.path, FIX):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = pyarrow.ipc.new_file(str(self.path), batch.schema)
            self._file.write_batch(batch)
        self._groups, self._bytes = [], 0


# `pyarrow.array` would import pandas, which takes a second.
def numbers(values: npt.ArrayLike, kind: type[np.generic]) -> Any:
    """Return a column of numbers."""
    import pyarrow

    array = np.ascontiguousarray(values, dtype=kind)
    return pyarrow.Array.from_buffers(pyarrow.from_numpy_dtype(kind), len(array), [None, pyarrow.py_buffer(array)])


def list_column(counts: Sequence[int], values: Any) -> Any:
    """Return a column of lists with these lengths, whose items are the items of the column `values`."""
    import pyarrow

    kind, places = pyarrow.list_(values.type), pyarrow.py_buffer(_offsets(counts).astype(np.int32))
    return pyarrow.Array.from_buffers(kind, len(counts), [None, places], children=[values])


def bytes_column(items: Sequence[bytes]) -> Any:
    """Return a column of bytes."""
    import pyarrow

    buffers = [None, pyarrow.py_buffer(_offsets(list(map(len, items)))), pyarrow.py_buffer(b"".join(items))]
    return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(items), buffers)


def _offsets(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return where lists of these lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _annotations(groups: Sequence[G]) -> dict[str, Any]:
    import pyarrow

    judgements = [j for group in groups for j in group.judgements]
    fields = {name: numbers([getattr(j, name) for j in judgements], np.int32) for name in ("better", "worse")}
    fields |= {name: numbers([getattr(j, name) for j in judgements], np.float64) for name in FLOATS}
    kind = pyarrow.struct([(name, field.type) for name, field in fields.items()])
    struct = pyarrow.Array.from_buffers(kind, len(judgements), [None], children=list(fields.values()))
    labels = numbers([label for group in groups for label in group.labels], np.int8)
    ranks = numbers([rank for group in groups for rank in group.ranks], np.float64)
    return {
        "judgements": list_column([len(g.judgements) for g in groups], struct),
        "labels": list_column([len(g.labels) for g in groups], labels),
        "ranks": list_column([len(g.ranks) for g in groups], ranks),
        "origin": bytes_column([encode(g.origin) for g in groups]),
        "source": numbers([g.source for g in groups], np.int16),
    }


def view(column: Any, kind: type[np.generic]) -> Any:
    """Return the numbers of a column of a file, without a copy. (`to_numpy` would import pandas.)"""
    return _view(column.buffers()[1], kind)[column.offset : column.offset + len(column)]


def _view(buffer: Any, kind: type[np.generic]) -> Any:
    return np.zeros(0, dtype=kind) if buffer is None else np.frombuffer(buffer, dtype=kind)


class Lists:
    """A column of lists: item i is `values[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, column: Any) -> None:
        self.offsets, self.values = _view(column.buffers()[1], np.int32), column.values

    def bounds(self, index: int) -> tuple[int, int]:
        return int(self.offsets[index]), int(self.offsets[index + 1])


class Bytes:
    """A column of bytes."""

    def __init__(self, column: Any) -> None:
        _, places, data = column.buffers()
        self.offsets = _view(places, np.int64)
        self.data = memoryview(data) if data is not None else memoryview(b"")

    def __getitem__(self, index: int) -> memoryview:
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]


class Columns:
    """The columns of one record batch that text and token files have in common."""

    def __init__(self, batch: pyarrow.RecordBatch) -> None:
        self._judgements, self._labels, self._ranks = (Lists(batch[name]) for name in ("judgements", "labels", "ranks"))
        struct = self._judgements.values
        self._fields = [view(struct.field(name), np.int32) for name in ("better", "worse")]
        self._fields += [view(struct.field(name), np.float64) for name in FLOATS]
        self._label, self._rank = view(self._labels.values, np.int8), view(self._ranks.values, np.float64)
        self._origin = Bytes(batch["origin"])
        self.source = view(batch["source"], np.int16)

    def judgements(self, index: int) -> tuple[Judgement, ...]:
        begin, end = self._judgements.bounds(index)
        return tuple(Judgement(*(field[i].item() for field in self._fields)) for i in range(begin, end))

    def labels(self, index: int) -> tuple[int, ...]:
        begin, end = self._labels.bounds(index)
        return tuple(self._label[begin:end].tolist())

    def ranks(self, index: int) -> tuple[float, ...]:
        begin, end = self._ranks.bounds(index)
        return tuple(self._rank[begin:end].tolist())

    def origin(self, index: int) -> str:
        return decode(self._origin[index])


C = TypeVar("C", bound=Columns)


class GroupFile(Sequence[G], Generic[G, C]):
    """The groups of an Arrow file. Groups are created when they are read, and no page of the file stays in memory.

    `starts` holds the index of the first group of each record batch, and the number of groups.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._file = MappedFile(path)
        self._reader = pyarrow.ipc.open_file(pyarrow.py_buffer(self._file.map))
        self._number = self._reader.num_record_batches
        self._columns: dict[int, C] = {}
        self.path = path
        lengths = [self._reader.get_batch(i).num_rows for i in range(self._number)]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @abstractmethod
    def open_columns(self, batch: Any) -> C:
        """Return the columns of a record batch."""

    @abstractmethod
    def group(self, columns: C, index: int) -> G:
        """Return the group with this index in its record batch."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> G: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[G]: ...
    def __getitem__(self, index: int | slice) -> G | Sequence[G]:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self), dtype=np.int64)[index])
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError("no group has this index")
        columns, row = self.locate(at)
        return self.group(columns, row)

    def locate(self, index: int) -> tuple[C, int]:
        """Return the columns of the record batch of a group, and the index of the group in it."""
        batch = int(np.searchsorted(self.starts, index, side="right")) - 1
        columns = self._columns.get(batch)
        if columns is None:
            columns = self._columns[batch] = self.open_columns(self._reader.get_batch(batch))
        self._file.count()
        return columns, index - int(self.starts[batch])

    @property
    def sources(self) -> npt.NDArray[np.int16]:
        """The number of the source of each group."""
        numbers: list[npt.NDArray[np.int16]] = [np.zeros(0, dtype=np.int16)]
        for index in range(self._number):
            numbers.append(view(self._reader.get_batch(index)["source"], np.int16))
        return np.concatenate(numbers)

    def __iter__(self) -> Iterator[G]:
        return (self[index] for index in range(len(self)))
