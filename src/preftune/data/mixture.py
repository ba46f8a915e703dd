"""How many groups of each source an epoch has, and which ones.

With n groups in a source:

    weight w    round(w n) groups, at least 1; the default is 1
    count c     c groups
    share s     the share s of the groups of the epoch, to within one group. If all sources have a share, the epoch is
                as large as it can be without using a group twice in it. Otherwise the other sources decide its size.

A source is used in passes. Each pass is an order of all its groups, drawn from the seed, the number of the source and
the number of the pass. An epoch continues where the epoch before it ended, so the numbers of times that two groups of a
source have been used never differ by more than 1. The order within an epoch is that of `steps.order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preftune.data.amount import Amount

Ints = npt.NDArray[np.int64]
PASS = 1 << 32  # distinguishes the keys of passes from those of epochs


def epoch_counts(sizes: Sequence[int], amounts: Sequence[Amount]) -> list[int]:
    """Return the number of groups of each source in an epoch. `sizes` are the numbers of groups of the sources."""
    counts = [_own_count(size, amount) for size, amount in zip(sizes, amounts, strict=True)]
    shares = {i: amount.share for i, amount in enumerate(amounts) if amount.share is not None}
    if not shares:
        return counts
    rest, shared = sum(counts), sum(shares.values())
    if len(shares) == len(amounts):
        total = min(sizes[i] / share for i, share in shares.items())
        exact = {i: share * total for i, share in shares.items()}
        whole = int(sum(exact.values()) + 1e-6)
    else:
        exact = {i: share * rest / (1 - shared) for i, share in shares.items()}
        whole = round(sum(exact.values()))
    for i, value in _rounded(exact, whole).items():
        counts[i] = max(1, value)
    return counts


def _own_count(size: int, amount: Amount) -> int:
    """Return the count of a source without a share, and 0 for one with a share."""
    if amount.share is not None:
        return 0
    if amount.count is not None:
        return amount.count
    return max(1, int(np.floor((amount.weight or 1.0) * size + 0.5)))


def _rounded(exact: dict[int, float], total: int) -> dict[int, int]:
    """Round to integers with this sum, by the largest remainders; equal remainders in the order of the sources."""
    values = {i: int(value + 1e-9) for i, value in exact.items()}
    missing = total - sum(values.values())
    for i in sorted(exact, key=lambda i: (-round(exact[i] - values[i], 9), i))[:missing]:
        values[i] += 1
    return values


@dataclass(frozen=True, slots=True)
class Mixture:
    """The groups of several sources in each epoch.

    members   for each source, the indices of its groups, in ascending order
    counts    for each source, the number of its groups in an epoch
    """

    members: tuple[Ints, ...]
    counts: tuple[int, ...]

    def epoch(self, seed: int, epoch: int) -> Ints:
        """Return the indices of the groups of an epoch, those of each source in ascending order."""
        chosen = [self._chosen(source, seed, epoch) for source in range(len(self.counts))]
        return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)

    def _chosen(self, source: int, seed: int, epoch: int) -> Ints:
        members, count = self.members[source], self.counts[source]
        begin, end, size = epoch * count, (epoch + 1) * count, len(members)
        parts = []
        for number in range(begin // size, -(-end // size)):
            order = np.random.Generator(np.random.Philox(key=[seed, PASS * (source + 1) + number])).permutation(size)
            parts.append(order[max(0, begin - number * size) : max(0, end - number * size)])
        return np.sort(members[np.concatenate(parts)])


def mixture_of(source_G: npt.NDArray[np.integer], amounts: Sequence[Amount]) -> Mixture | None:
    """Return the mixture of groups from the sources 0, 1, ... with these amounts; None if each is used once per epoch.

    source_G   the source of each group; a source without groups does not take part
    """
    present = [i for i in range(len(amounts)) if (source_G == i).any()]
    members = tuple(np.flatnonzero(source_G == i) for i in present)
    sizes = list(map(len, members))
    counts = epoch_counts(sizes, [amounts[i] for i in present])
    return None if counts == sizes else Mixture(members, tuple(counts))
