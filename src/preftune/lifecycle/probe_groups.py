"""Small groups of token ids on which the packing probe compares layouts. They are the same for every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.types import TokenGroup

if TYPE_CHECKING:
    from preftune.types import Ids

LONGEST = 34  # tokens of the longest sequence of `text_like_groups`


def short_groups(vocabulary: int) -> list[TokenGroup]:
    """Return three groups of random tokens. They are short enough for a whole model of any size."""
    generator = np.random.default_rng(0)

    def ids(n: int) -> Any:
        return generator.integers(vocabulary // 8, vocabulary, n, dtype=np.int32)

    shapes: list[tuple[int, Sequence[int]]] = [(9, (5, 7)), (4, (1, 6, 3)), (13, (8, 2))]
    return [TokenGroup(ids(prompt), tuple(ids(n) for n in lengths)) for prompt, lengths in shapes]


def text_like_groups(vocabulary: int, special: Sequence[int]) -> list[TokenGroup]:
    """Return groups that repeat tokens as text does: Zipf-distributed, one token, an n-gram, with special tokens.

    Responses have different lengths, down to one token, or begin with the same tokens. No id is 0.
    """
    generator = np.random.default_rng(1)
    low = max(1, min(vocabulary // 8, 1000))
    special = [i for i in special if 0 < i < vocabulary] or [low]

    def uniform(n: int) -> Ids:
        return generator.integers(low, vocabulary, n, dtype=np.int32)

    def zipf(n: int) -> Ids:
        rank = np.minimum(generator.pareto(1.0, n) * 5, vocabulary - low - 1)
        return (low + rank).astype(np.int32)

    def one(n: int) -> Ids:
        return np.repeat(uniform(1), n)

    def ngram(n: int) -> Ids:
        return np.resize(uniform(3), n)

    def marked(n: int) -> Ids:
        ids = zipf(n)
        ids[::4] = np.resize(np.array(special, dtype=np.int32), len(ids[::4]))
        return ids

    def group(kind: Callable[[int], Ids], prompt: int, *responses: Ids) -> TokenGroup:
        return TokenGroup(kind(prompt), responses)

    same = zipf(19)
    return [
        group(uniform, 10, uniform(6), uniform(1), uniform(24)),
        group(zipf, 21, zipf(4), zipf(13)),
        group(one, 12, one(5), zipf(9)),
        group(ngram, 17, ngram(11), same[:7]),
        group(marked, 9, marked(12), same, same[:5]),
        group(uniform, 1, zipf(20), uniform(2)),
    ]
