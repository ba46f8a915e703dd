"""Slices of a source: `name[:1000]`, `name[10%:]`, `name[-100:]`, as `datasets` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from preftune.errors import DataError
from preftune.sources.rows import Row

SLICE = re.compile(r"(?P<name>.+)\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\](?P<rest>@[\w./-]+)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows from `begin` up to, but without, `end`: row numbers from 0, or percentages; "" for an open end.

    A negative number counts from the end. A percentage of the rows is rounded to the nearest row.
    """

    begin: str = ""
    end: str = ""

    def __str__(self) -> str:
        return f"[{self.begin}:{self.end}]"

    @property
    def needs_total(self) -> bool:
        """Whether the number of rows has to be known."""
        return any(bound.startswith("-") or bound.endswith("%") for bound in (self.begin, self.end))

    def bounds(self, total: int | None) -> tuple[int, int | None]:
        """Return the first row, and the row after the last one or None. `total` is the number of rows, if known."""
        begin, end = (self._row(bound, total) for bound in (self.begin, self.end))
        return begin or 0, end

    @staticmethod
    def _row(bound: str, total: int | None) -> int | None:
        if not bound:
            return None
        number = int(bound.removesuffix("%"))
        if bound.endswith("%"):
            assert total is not None
            number = round(abs(number) * total / 100) * (-1 if number < 0 else 1)
        if bound.startswith("-"):
            assert total is not None
            number = max(0, total + number)
        return number

    def rows(self, read: Callable[[], Iterable[Row]], name: str) -> Iterator[Row]:
        """Yield the rows of the slice. `read` reads the source, a second time if its rows have to be counted first."""
        total = sum(1 for _ in read()) if self.needs_total else None
        begin, end = self.bounds(total)
        if end is not None and end <= begin:
            raise self.empty(name)
        yield from islice(read(), begin, end)

    def empty(self, name: str) -> DataError:
        """Return the error for a slice without rows."""
        what = f"the slice {self} has no rows"
        return DataError(what, where=name, fix="write the first row, and the row after the last one: name[0:1000]")


def split_slice(name: str) -> tuple[str, Slice | None]:
    """Return the name of a source without its slice, and the slice. A file may have such a name.

    The slice is the end of the name, or is before the revision of a Hub dataset: `org/name:train[:1000]@main`. Raises
    DataError for a percentage above 100.
    """
    match = SLICE.fullmatch(name)
    if match is None or Path(name).exists():
        return name, None
    part = Slice(match["begin"] or "", match["end"] or "")
    for bound in (part.begin, part.end):
        if bound.endswith("%") and abs(int(bound[:-1])) > 100:
            raise DataError(f"{bound} is not between 0% and 100%", where=name, fix="write name[10%:90%]")
    return match["name"] + (match["rest"] or ""), part
