"""Assign groups to optimizer steps, as a function of the seed, the epoch and the step only.

The assignment does not depend on the number of ranks, the size of micro-batches, or how often a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its number (from 1), its epoch (from 0) and the indices of its groups."""

    number: int
    epoch: int
    members: tuple[int, ...]


def size_of(group: TokenGroup) -> int:
    """Return the size of a group for `batch.pairs`: its judgements, else its labelled responses, else its responses."""
    return len(group.judgements) or sum(label != 0 for label in group.labels) or len(group.response_ids)


def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """Return the order of n groups in an epoch."""
    return [int(i) for i in np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)]


def epoch_steps(sizes: Sequence[int], pairs: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Split an epoch into steps with at most `pairs` judgements each. Every group is in exactly one step.

    Groups are not split: a group with more than `pairs` judgements is alone in its step. The last step of an epoch may
    be smaller than the others.
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
    """Yield all steps of a run, in order."""
    number = 0
    for epoch in range(epochs):
        for members in epoch_steps(sizes, pairs, seed, epoch):
            number += 1
            if max_steps is not None and number > max_steps:
                return
            yield Step(number, epoch, members)
