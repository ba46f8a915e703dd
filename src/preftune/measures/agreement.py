"""Agreement between annotators: raw agreement, Cohen's kappa and Krippendorff's alpha.

The input is one list of labels per item: those that its annotators gave. Only items with at least two labels count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement over the `items` that at least two annotators labelled.

    raw    share of pairs of labels that are equal: the mean over items
    alpha  Krippendorff's alpha: 1 for perfect agreement, 0 for chance. None if all labels are the same
    """

    items: int
    raw: float
    alpha: float | None


def agreement(labels: Sequence[Sequence[str]]) -> Agreement | None:
    """Return the agreement on the items, or None if no item has two labels."""
    shared = [item for item in labels if len(item) > 1]
    if not shared:
        return None
    raw = sum(_equal_pairs(item) / (len(item) * (len(item) - 1)) for item in shared) / len(shared)
    return Agreement(len(shared), raw, krippendorff_alpha(shared))


def krippendorff_alpha(labels: Sequence[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha for nominal labels, 1 - D_observed / D_expected; None if all labels are equal.

    An item with m labels adds 1 / (m - 1) for each ordered pair of its labels to the coincidence matrix. With n values
    in the matrix and n_c of label c:  D_o = sum of its off-diagonal / n,  D_e = 1 - sum_c n_c (n_c - 1) / (n (n - 1)).
    Items may have different numbers of labels. Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    shared = [item for item in labels if len(item) > 1]
    counts = Counter(label for item in shared for label in item)
    n = sum(counts.values())
    if len(counts) < 2:
        return None
    differing = sum((len(item) * (len(item) - 1) - _equal_pairs(item)) / (len(item) - 1) for item in shared)
    expected = 1 - sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))
    return 1 - differing / n / expected


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two annotators, (p_o - p_e) / (1 - p_e); None if both always gave the same one label.

    `pairs` has the two labels of each item that both labelled. p_o is the share of equal labels, p_e the share that
    is expected by chance from how often each annotator gives each label. Source: Cohen 1960, "A coefficient of
    agreement for nominal scales".
    """
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / n
    chance = sum(first[label] * second[label] for label in first) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else None


def _equal_pairs(item: Sequence[str]) -> int:
    """Return the number of ordered pairs of equal labels."""
    return sum(a == b for a, b in permutations(item, 2))
