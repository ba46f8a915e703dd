"""Divide the groups of a step among ranks, and add up what the ranks computed.

Every rank gets nearly equal work. The step's item count is global, so losses and gradients are those of one process up
to rounding, for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from preftune.data.layout import LayoutName, balanced_shares, slots_of
from preftune.data.subset import subset
from preftune.ranks import group
from preftune.ranks.shard import is_dtensor
from preftune.types import Batch, TokenGroup

T = TypeVar("T")
R = TypeVar("R")
MakeBatches = Callable[[Sequence[TokenGroup]], list[Batch]]
BUCKET = 1 << 24  # elements that are sent at a time; they are copied for it


def own(items: Sequence[T], cost: Callable[[T], float]) -> Sequence[T]:
    """Return this rank's share of `items`, in their order. All shares have nearly the same sum of costs."""
    if group.world() == 1:
        return items
    shares = balanced_shares([cost(item) for item in items], group.world())
    return subset(items, np.array(sorted(shares[group.rank()]), dtype=np.int64))


def by_rank(items: Sequence[T], cost: Callable[[T], float], compute: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """Return compute(items), of which each rank computes a share. `compute` returns one value per item, on the CPU."""
    if group.world() == 1:
        return list(compute(list(items)))
    shares = balanced_shares([cost(item) for item in items], group.world())
    mine = sorted(shares[group.rank()])
    parts = group.gather(list(compute([items[index] for index in mine])) if mine else [])
    values: dict[int, R] = {}
    for share, part in zip(shares, parts, strict=True):
        values |= zip(sorted(share), part, strict=True)
    return [values[index] for index in range(len(items))]


def slots(layout: LayoutName) -> Callable[[TokenGroup], float]:
    """Return the cost of a group: its token slots in a layout."""
    return lambda item: slots_of(item, layout)


def fillers(batches: Sequence[Batch], groups: Sequence[TokenGroup], make: MakeBatches, is_split: bool) -> list[Batch]:
    """Return micro-batches that a rank runs for nothing if its weights are split and other ranks have more batches.

    Each pass gathers weights from all ranks, so all must make the same number of passes. All ranks must call this
    before the first pass.
    """
    if not is_split:
        return []
    lacking = int(group.all_max(len(batches))) - len(batches)
    return make([min(groups, key=lambda item: item.tokens)]) * lacking


@torch.no_grad()
def sum_gradients(masters: Sequence[Tensor]) -> None:
    """Add up the gradients of all ranks, in place. A weight without gradient on any rank keeps none.

    Gradients of split weights are already sums.
    """
    masters = [master for master in masters if not is_dtensor(master)]
    if group.world() == 1 or not masters:
        return
    has_gradient = group.all_sum(torch.tensor([float(master.grad is not None) for master in masters]))
    reduced = [master for master, ranks in zip(masters, has_gradient.tolist(), strict=True) if ranks]
    for master in reduced:
        if master.grad is None:
            master.grad = torch.zeros_like(master)
    bucket: list[Tensor] = []
    for number, master in enumerate(reduced, start=1):
        assert master.grad is not None
        bucket.append(master.grad)
        if number == len(reduced) or sum(part.numel() for part in bucket) >= BUCKET:
            _sum_bucket(bucket)
            bucket = []


def _sum_bucket(parts: Sequence[Tensor]) -> None:
    """Add up tensors of all ranks in one message, in place."""
    if len(parts) == 1 and parts[0].is_contiguous():
        dist.all_reduce(parts[0])
        return
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view(part.shape))
