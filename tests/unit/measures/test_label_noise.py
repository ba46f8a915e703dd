"""Calibration of held-out margins against hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.measures.label_noise import confidence, slope


def test_margins_of_equal_size_get_the_share_of_correct_labels_as_confidence() -> None:
    """Three of four right at a margin of 0.2: sigmoid(0.2 a) must be 3/4."""
    margins = np.array([0.2, 0.2, 0.2, -0.2])
    a = slope(margins, np.ones(4))
    assert a == pytest.approx(math.log(3) / 0.2)
    assert confidence(margins, a) == pytest.approx([0.25, 0.25, 0.25, 0.75])


def test_a_weight_counts_like_repeated_rows() -> None:
    margins, weights = np.array([0.1, 0.5, -0.3, -0.1]), np.array([1.0, 3.0, 1.0, 2.0])
    repeated = np.repeat(margins, weights.astype(int))
    assert slope(margins, weights) == pytest.approx(slope(repeated, np.ones(7)))


def test_scaled_margins_give_the_same_confidence() -> None:
    margins = np.random.default_rng(0).normal(0.3, 1.0, 200)
    one, other = (confidence(m, slope(m, np.ones(200))) for m in (margins, 1e-3 * margins))
    assert one == pytest.approx(other)


@pytest.mark.parametrize("margins", [[-0.1, -0.2, 0.1], [0.0, 0.0, 0.0]])
def test_margins_no_better_than_chance_give_a_confidence_of_one_half(margins: list[float]) -> None:
    assert slope(np.array(margins), np.ones(3)) == 0.0
    assert confidence(np.array(margins), 0.0).tolist() == [0.5, 0.5, 0.5]


def test_margins_that_agree_with_every_label_give_a_confidence_near_zero() -> None:
    margins = np.array([0.1, 0.2])
    assert (confidence(margins, slope(margins, np.ones(2))) < 1e-6).all()
