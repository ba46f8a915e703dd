"""A list of origins ("file:line") that takes little memory: consecutive lines of a file are stored as one run."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload


class Origins(Sequence[str]):
    """A list of origins to which more can be appended. It is equal to a list or tuple of the same texts.

    An origin "name:12" is stored as the name and the number 12, and "name:12", "name:13", "name:14" as one run. Any
    other text is stored as it is.
    """

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._names: list[str] = []
        self._place: dict[str, int] = {}
        self._runs = array("q")  # for each run: index of the name, first number (-1: none), length
        self._length = 0
        for origin in origins:
            self.append(origin)

    def append(self, origin: str) -> None:
        """Add an origin at the end."""
        name, colon, digits = origin.rpartition(":")
        # only the text that `_text` writes: not "01", not other digits of Unicode
        numbered = bool(colon) and digits.isascii() and digits.isdigit() and (digits[0] != "0" or digits == "0")
        if not numbered or len(digits) > 18:
            name, number = origin, -1
        else:
            number = int(digits)
        place = self._place.get(name)
        if place is None:
            place = self._place[name] = len(self._names)
            self._names.append(name)
        runs = self._runs
        if number >= 0 and runs and runs[-3] == place and runs[-2] >= 0 and runs[-2] + runs[-1] == number:
            runs[-1] += 1
        else:
            runs.extend((place, number, 1))
        self._length += 1

    @property
    def last(self) -> str | None:
        """The origin that was appended last."""
        return self._text(self._runs[-3], self._runs[-2] + self._runs[-1] - 1) if self._runs else None

    def all_begin_with(self, prefix: str) -> bool:
        """Return whether all origins begin with `prefix`."""
        return all(
            self._text(self._runs[at], self._runs[at + 1]).startswith(prefix) for at in range(0, len(self._runs), 3)
        )

    def _text(self, place: int, number: int) -> str:
        return self._names[place] if number < 0 else f"{self._names[place]}:{number}"

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self._runs), 3):
            place, first, length = self._runs[at : at + 3]
            if first < 0:
                yield self._names[place]
            else:
                yield from (self._text(place, number) for number in range(first, first + length))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if start == 0 and step == 1:
                return [origin for origin, _ in zip(self, range(stop), strict=False)]
            return list(self)[index]
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError("no origin has this index")
        for run in range(0, len(self._runs), 3):
            place, first, length = self._runs[run : run + 3]
            if at < length:
                return self._text(place, first + at if first >= 0 else first)
            at -= length
        raise AssertionError

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Origins):
            same = (self._names, self._runs) == (other._names, other._runs)
            return same or (len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True)))
        return isinstance(other, list | tuple) and len(other) == self._length and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def record(self) -> dict[str, Any]:
        """Return the list as JSON; `from_record` reads it."""
        return {"names": self._names, "runs": base64.b85encode(zlib.compress(self._runs.tobytes(), 1)).decode()}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Origins:
        origins = Origins()
        origins._names = list(record["names"])
        origins._place = {name: place for place, name in enumerate(origins._names)}
        origins._runs = array("q", zlib.decompress(base64.b85decode(record["runs"])))
        origins._length = sum(origins._runs[2::3])
        return origins
