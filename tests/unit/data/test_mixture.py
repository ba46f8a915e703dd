"""How many groups of each source an epoch has, and which ones."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies

from preftune.data.amount import Amount
from preftune.data.mixture import Mixture, epoch_counts, mixture_of
from preftune.data.steps import training_steps


@pytest.mark.parametrize(
    ("sizes", "amounts", "counts"),
    [
        ([10, 20], [Amount(), Amount()], [10, 20]),
        ([10, 20], [Amount(weight=2), Amount()], [20, 20]),
        ([10, 20], [Amount(weight=0.25), Amount()], [3, 20]),  # 2.5 is rounded up
        ([10, 20], [Amount(weight=0.001), Amount()], [1, 20]),
        ([10, 20], [Amount(count=7), Amount(weight=0.5)], [7, 10]),
        ([10, 20], [Amount(count=35), Amount()], [35, 20]),
        ([100, 20], [Amount(share=0.5), Amount()], [20, 20]),
        ([100, 20], [Amount(share=0.8), Amount()], [80, 20]),
        ([5, 30], [Amount(share=0.25), Amount()], [10, 30]),  # twice each
        ([100, 20, 7], [Amount(share=0.5), Amount(count=10), Amount()], [17, 10, 7]),
        ([100, 1000], [Amount(share=0.5), Amount(share=0.5)], [100, 100]),
        ([100, 1000], [Amount(share=0.2), Amount(share=0.8)], [100, 400]),
        ([1000, 100], [Amount(share=0.9), Amount(share=0.1)], [900, 100]),
        ([10, 10, 10], [Amount(share=1 / 3), Amount(share=1 / 3), Amount(share=1 / 3)], [10, 10, 10]),
        ([3], [Amount(weight=2)], [6]),
    ],
)
def test_counts(sizes: list[int], amounts: list[Amount], counts: list[int]) -> None:
    assert epoch_counts(sizes, amounts) == counts


@given(
    strategies.lists(strategies.tuples(strategies.integers(1, 300), strategies.integers(1, 20)), min_size=2, max_size=5)
)
def test_shares_are_exact_to_one_group(sources: list[tuple[int, int]]) -> None:
    """And no group is used twice in an epoch if all sources have a share."""
    total = sum(part for _, part in sources)
    sizes = [size for size, _ in sources]
    counts = epoch_counts(sizes, [Amount(share=part / total) for _, part in sources])
    whole = min(Fraction(size * total, part) for size, part in sources)
    for (size, part), count in zip(sources, counts, strict=True):
        assert count <= size
        assert abs(count - whole * Fraction(part, total)) < 1 + 1e-6 or count == 1


def test_the_default_is_the_order_without_a_mixture() -> None:
    sources = np.repeat([0, 1], [7, 5])
    assert mixture_of(sources, [Amount(), Amount()]) is None
    full = Mixture((np.arange(7), np.arange(7, 12)), (7, 5))
    sizes = [1] * 12
    plain, mixed = training_steps(sizes, 4, 3, 2), training_steps(sizes, 4, 3, 2, mixture=full)
    assert [step.members for step in plain] == [step.members for step in mixed]


def test_epochs_continue_the_passes_over_a_source() -> None:
    """With weight 0.4, five epochs use every group twice, and no group is used before all others were."""
    mixture = mixture_of(np.repeat([0, 1], [10, 3]), [Amount(weight=0.4), Amount()])
    assert mixture is not None
    uses: Counter[int] = Counter()
    for epoch in range(5):
        chosen = mixture.epoch(1, epoch).tolist()
        assert [index for index in chosen if index >= 10] == [10, 11, 12]
        uses.update(index for index in chosen if index < 10)
        assert max(uses.values()) - min(uses[i] for i in range(10)) <= 1
    assert set(uses.values()) == {2}


def test_a_weight_above_one_repeats_groups() -> None:
    mixture = mixture_of(np.zeros(4, dtype=int), [Amount(weight=2.5)])
    assert mixture is not None
    first, second = mixture.epoch(0, 0), mixture.epoch(0, 1)
    assert sorted(Counter(first.tolist()).values()) == [2, 2, 3, 3]
    assert set(Counter([*first.tolist(), *second.tolist()]).values()) == {5}


def test_the_choice_depends_on_the_seed_only() -> None:
    mixture = mixture_of(np.repeat([0, 1], [50, 50]), [Amount(count=10), Amount(count=10)])
    assert mixture is not None
    one, two = mixture.epoch(5, 3), mixture.epoch(5, 3)
    assert one.tolist() == two.tolist()
    assert one.tolist() != mixture.epoch(6, 3).tolist()
    own = one[one < 50].tolist(), (one[one >= 50] - 50).tolist()
    assert own[0] != own[1]  # two sources of the same size are not used in the same order


def test_steps_visit_and_use_what_the_mixture_chooses() -> None:
    mixture = mixture_of(np.repeat([0, 1], [6, 4]), [Amount(count=2), Amount(weight=2)])
    steps = training_steps([1] * 10, 4, 0, 3, mixture=mixture)
    members = [index for step in steps for index in step.members]
    assert len(members) == 30
    assert [len(step.members) for step in steps] == [4, 4, 2] * 3
    assert steps.uses(10).tolist() == [1] * 6 + [6] * 4
    assert steps.visited.tolist() == sorted(set(members))
    short = training_steps([1] * 10, 4, 0, 3, 4, mixture)
    used = [index for step in short for index in step.members]
    assert short.visited.tolist() == sorted(set(used))
    assert short.uses(10).sum() == len(used) == 14


def test_a_source_without_groups_takes_no_part() -> None:
    mixture = mixture_of(np.array([0, 0, 2, 2]), [Amount(weight=2), Amount(count=5), Amount()])
    assert mixture is not None
    assert mixture.counts == (4, 2)
