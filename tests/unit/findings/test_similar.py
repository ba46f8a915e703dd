"""Similar texts are found, whatever the number of other texts, and the cycles are those of a direct search."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preftune.findings.cycles import inconsistent
from preftune.findings.similar import BANDS, ROWS, Index, bands, shingles, similarity
from preftune.findings.text import normalised

TEXTS = st.text("abc d", min_size=1, max_size=40)


def direct(a: str, b: str) -> float:
    sets = []
    for text in map(normalised, (a, b)):
        padded = text.ljust(5, "\0")
        sets.append({padded[i : i + 5] for i in range(len(padded) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(TEXTS, TEXTS)
def test_the_similarity_is_the_jaccard_index_of_the_shingles(a: str, b: str) -> None:
    assert similarity(shingles(a), shingles(b)) == direct(a, b)


def test_the_share_of_candidates_follows_the_formula() -> None:
    """The probability 1 - (1 - s^6)^20 within four standard errors, at several similarities."""
    draw = np.random.default_rng(1)
    for common, other in ((90, 10), (60, 20), (50, 30), (40, 40)):
        s, hits, trials = common / (common + 2 * other), 0, 400
        for _ in range(trials):
            values = draw.integers(0, 2**64, common + 2 * other, dtype=np.uint64, endpoint=False)
            index = Index()
            index.add(bands(values[: common + other]), 1)
            second = np.concatenate((values[:common], values[common + other :]))
            hits += index.candidates(bands(second)) == [1]
        p = 1 - (1 - s**ROWS) ** BANDS
        assert abs(hits / trials - p) <= 4 * np.sqrt(p * (1 - p) / trials) + 0.005, (s, hits / trials, p)


def test_a_bucket_has_a_limit() -> None:
    index, places = Index(per_bucket=3), bands(shingles("the same text"))
    for number in range(10):
        index.add(places, number)
    assert index.candidates(places) == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda e: e[0] != e[1]), max_size=14))
def test_inconsistent_judgements_are_those_of_a_direct_search(edges: list[tuple[int, int]]) -> None:
    def reaches(start: int, goal: int) -> bool:
        seen, todo = {start}, [start]
        while todo:
            node = todo.pop()
            new = {w for b, w in edges if b == node} - seen
            seen |= new
            todo += new
        return goal in seen

    opposed, cyclic = inconsistent([b for b, _ in edges], [w for _, w in edges])
    assert opposed.tolist() == [(w, b) in edges for b, w in edges]
    assert cyclic.tolist() == [reaches(w, b) and (w, b) not in edges for b, w in edges]


def test_a_long_chain_needs_no_recursion() -> None:
    nodes = list(range(50_000))
    random.Random(0).shuffle(nodes)
    opposed, cyclic = inconsistent(nodes, [*nodes[1:], nodes[0]])
    assert not opposed.any()
    assert cyclic.all()
