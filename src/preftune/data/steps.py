"""Assign groups to optimizer steps, as a function of the seed, the epoch and the step only.

The assignment does not depend on the number of ranks, the size of micro-batches, or how often a run was resumed.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from preftune.data.mixture import Mixture
from preftune.data.subset import Subset
from preftune.types import TokenGroup

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its number (from 1), its epoch (from 0) and the indices of its groups."""

    number: int
    epoch: int
    members: tuple[int, ...]


def size_of(group: TokenGroup) -> int:
    """Return the size of a group for `batch.pairs`: its judgements, else its labelled responses, else its responses."""
    return len(group.judgements) or sum(label != 0 for label in group.labels) or len(group.response_ids)


def order(n: int, seed: int, epoch: int) -> Ints:
    """Return the order of n groups in an epoch, as an array."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """Return the order of n groups in an epoch."""
    return [int(index) for index in order(n, seed, epoch)]


def epoch_steps(sizes: Sequence[int] | Ints, pairs: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Split an epoch into steps with at most `pairs` judgements each. Every group is in exactly one step.

    Groups are not split: a group with more than `pairs` judgements is alone in its step. The last step of an epoch may
    be smaller than the others.
    """
    members = order(len(sizes), seed, epoch)
    ends = _ends(np.asarray(sizes, dtype=np.int64)[members], pairs)
    return [tuple(members[begin:end].tolist()) for begin, end in zip([0, *ends], ends, strict=False)]


def _ends(sizes: Ints, pairs: int) -> list[int]:
    """Return where each step ends, for groups in the order of an epoch."""
    filled = np.cumsum(sizes)
    ends, begin, before = [], 0, 0
    while begin < len(sizes):
        end = max(int(np.searchsorted(filled, before + pairs, side="right")), begin + 1)
        ends.append(end)
        begin, before = end, int(filled[end - 1])
    return ends


class Steps(Sequence[Step]):
    """The steps of a run, in order, as two arrays per epoch: the order of the groups, and where each step ends."""

    def __init__(
        self,
        sizes: Sequence[int] | Ints,
        pairs: int,
        seed: int,
        epochs: int,
        max_steps: int | None = None,
        mixture: Mixture | None = None,
    ):
        self._orders: list[npt.NDArray[np.int32]] = []
        self._ends: list[npt.NDArray[np.int64]] = []
        self._first = [0]  # the number of steps before each epoch
        sizes = np.asarray(sizes, dtype=np.int64)
        for epoch in range(epochs):
            if max_steps is not None and self._first[-1] >= max_steps:
                break
            chosen = np.arange(len(sizes)) if mixture is None else mixture.epoch(seed, epoch)
            members = chosen[order(len(chosen), seed, epoch)]
            ends = _ends(sizes[members], pairs)
            self._orders.append(members.astype(np.int32))
            self._ends.append(np.array([0, *ends], dtype=np.int64))
            self._first.append(self._first[-1] + len(ends))
        self._length = self._first[-1] if max_steps is None else min(max_steps, self._first[-1])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError("no step has this index")
        epoch = bisect.bisect_right(self._first, at) - 1
        begin, end = self._ends[epoch][at - self._first[epoch] :][:2]
        return Step(at + 1, epoch, tuple(self._orders[epoch][begin:end].tolist()))

    @property
    def visited(self) -> npt.NDArray[np.int32]:
        """The groups that are in any step, in ascending order."""
        return np.unique(self._used())

    def _used(self) -> npt.NDArray[np.int32]:
        """Return the groups of all steps, in order."""
        if not len(self):
            return np.zeros(0, dtype=np.int32)
        last = self._orders[-1][: self._ends[-1][self._length - self._first[-2]]]
        return np.concatenate([*self._orders[:-1], last])

    def uses(self, groups: int) -> Ints:
        """Return how often each of the groups 0, 1, ... is in a step."""
        return np.bincount(self._used(), minlength=groups)


def training_steps(
    sizes: Sequence[int] | Ints,
    pairs: int,
    seed: int,
    epochs: int,
    max_steps: int | None = None,
    mixture: Mixture | None = None,
) -> Steps:
    """Return all steps of a run, in order. With a mixture, it chooses the groups of each epoch."""
    return Steps(sizes, pairs, seed, epochs, max_steps, mixture)
