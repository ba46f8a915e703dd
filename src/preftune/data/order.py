"""Which groups make which optimizer step: a function of seed, epoch and step alone.

Neither the number of ranks, nor the size of micro-batches, nor how often a run was stopped changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its number (from 1), its epoch (from 0) and the groups in it."""

    number: int
    epoch: int
    members: tuple[int, ...]


def size_of(group: TokenGroup) -> int:
    """What a group counts for in `batch.pairs`: its judgements, or without any its labelled responses."""
    return len(group.judgements) or sum(label != 0 for label in group.labels) or len(group.response_ids)


def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """The order of n groups in an epoch."""
    return [int(i) for i in np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)]


def epoch_steps(sizes: Sequence[int], pairs: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The steps of an epoch, each with at most `pairs` judgements; every group is in exactly one.

    A group is never split: one that is larger than `pairs` makes a step of its own, and the last step
    of an epoch may be smaller.
    """
    steps: list[tuple[int, ...]] = []
    current: list[int] = []
    filled = 0
    for index in permutation(len(sizes), seed, epoch):
        if current and filled + sizes[index] > pairs:
            steps.append(tuple(current))
            current, filled = [], 0
        current.append(index)
        filled += sizes[index]
    if current:
        steps.append(tuple(current))
    return steps


def training_steps(
    sizes: Sequence[int], pairs: int, seed: int, epochs: int, max_steps: int | None = None
) -> Iterator[Step]:
    """All steps of a run, in order."""
    number = 0
    for epoch in range(epochs):
        for members in epoch_steps(sizes, pairs, seed, epoch):
            number += 1
            if max_steps is not None and number > max_steps:
                return
            yield Step(number, epoch, members)
