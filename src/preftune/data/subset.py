"""A part of a sequence of groups, in any order, without a copy of the groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from preftune.data.shapes import Shapes, stored_shapes

T = TypeVar("T")
Indices = npt.NDArray[np.integer[Any]]


class Subset(Sequence[T]):
    """The items of `items` at `indices`."""

    def __init__(self, items: Sequence[T], indices: Indices) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Subset(self.items, self.indices[index])
        return self.items[int(self.indices[index])]

    def __iter__(self) -> Iterator[T]:
        return (self.items[int(index)] for index in self.indices)

    @cached_property
    def shapes(self) -> Shapes | None:
        """The shapes of the groups, if `items` has stored ones."""
        stored = stored_shapes(self.items)
        return None if stored is None else stored.take(self.indices)


def sources_of(groups: Sequence[Any]) -> npt.NDArray[np.int16]:
    """Return the number of the source of each group."""
    if isinstance(groups, Subset):
        return sources_of(groups.items)[groups.indices]
    stored = getattr(groups, "sources", None)
    if isinstance(stored, np.ndarray):
        return stored
    return np.fromiter((group.source for group in groups), dtype=np.int16, count=len(groups))


def subset(items: Sequence[T], indices: Indices) -> Sequence[T]:
    """Return the items at `indices`: a list if `items` is a list, otherwise a view."""
    if isinstance(items, list):
        return [items[int(index)] for index in indices]
    if isinstance(items, Subset):
        return Subset(items.items, items.indices[indices])
    return Subset(items, indices)


class Joined(Sequence[T]):
    """The items of `first`, then those of `second`."""

    def __init__(self, first: Sequence[T], second: Sequence[T]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        at = index + len(self) if index < 0 else index
        return self.first[at] if at < len(self.first) else self.second[at - len(self.first)]

    def __iter__(self) -> Iterator[T]:
        yield from self.first
        yield from self.second

    @cached_property
    def shapes(self) -> Shapes | None:
        """The shapes of the groups, if both parts have stored ones."""
        first, second = stored_shapes(self.first), stored_shapes(self.second)
        return None if first is None or second is None else first.followed_by(second)


def joined(first: Sequence[T], second: Sequence[T]) -> Sequence[T]:
    """Return the items of both sequences: a list if both are lists, otherwise a view."""
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *second]
    return Joined(first, second)
