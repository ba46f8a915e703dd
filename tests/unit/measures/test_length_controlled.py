"""AlpacaEval's length-controlled win rate against scikit-learn's results and the optimality conditions of the fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from preftune.measures.length_controlled import (
    FOLDS,
    STRENGTHS,
    Gamed,
    cross_validated,
    fit,
    length_controlled,
    log_loss,
)


def leaderboard(seed: int, n: int) -> tuple[Any, Any, Any, Gamed]:
    """Return (preference, longer, difficulty, gamed) of an invented model with one unreadable verdict."""
    r = np.random.default_rng(seed)
    difficulty = r.normal(0.2, 0.6, n)
    length = np.concatenate([r.normal(-0.8, 1, n), r.normal(1.2, 1, n)])
    both = np.tile(difficulty, 2)
    gamed = 1 / (1 + np.exp(-(-0.9 * np.tanh(length) + 0.1 * both + r.normal(0, 1, 2 * n))))
    longer = np.round(r.normal(-150, 500, n))
    z = -0.8 * np.tanh(longer / longer.std(ddof=1)) + 0.7 * difficulty - 0.9
    won = (r.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    preference = np.clip(won * 0.9 + 0.05 + r.normal(0, 0.02, n), 0, 1)
    preference[3] = np.nan
    return preference, longer, difficulty, Gamed(gamed, length, both, np.zeros(2 * n))


@pytest.mark.parametrize(
    ("seed", "n", "rate", "standard_error", "strength", "weights"),
    [
        (0, 60, 0.3096016743, 0.0095284525, 2.7825594, (-0.5529621, -0.6474919, -0.6650659)),
        (1, 60, 0.3201665886, 0.0118024670, 21.5443469, (-1.1898997, 0.8514717, -0.9323128)),
        (2, 200, 0.3699491377, 0.0050165418, 21.5443469, (-0.5941181, 0.5359969, -0.6493714)),
    ],
)
def test_the_fit_matches_scikit_learn_as_alpaca_eval_calls_it(
    seed: int, n: int, rate: float, standard_error: float, strength: float, weights: tuple[float, float, float]
) -> None:
    """The expected values come from scikit-learn 1.9.1: LogisticRegressionCV with penalty l1, solver liblinear, no
    intercept, a GroupKFold of 5, and each row twice, once per outcome. Its solver stops at a tolerance of 1e-4."""
    result = length_controlled(*leaderboard(seed, n))
    assert result.rate == pytest.approx(rate, abs=5e-5)
    assert result.standard_error == pytest.approx(standard_error, abs=5e-6)
    assert result.strength == pytest.approx(strength)
    assert result.weights == pytest.approx(weights, abs=2e-4)


def test_the_fit_meets_the_optimality_conditions() -> None:
    """For a non-zero weight the gradient of the log loss is the penalty's slope; for a zero weight it is smaller."""
    r = np.random.default_rng(0)
    x, y, weight = r.normal(size=(50, 3)), r.random(50), r.random(50)
    for strength in (0.05, 0.5, 5.0, 500.0):
        w = fit(x, y, weight, strength, np.zeros(3))
        slope = strength * (x.T @ (weight * (1 / (1 + np.exp(-x @ w)) - y)))
        for value, gradient in zip(w, slope, strict=True):
            if value == 0:
                assert abs(gradient) <= 1 + 1e-6
            else:
                assert gradient == pytest.approx(-math.copysign(1, value), abs=1e-3)
    assert (fit(x, y, weight, 1e-4, np.zeros(3)) == 0).all()


def test_the_strength_has_the_smallest_held_out_loss() -> None:
    r = np.random.default_rng(1)
    x, weight = r.normal(size=(40, 3)), np.ones(40)
    y = 1 / (1 + np.exp(-(x @ np.array([1.0, 0.0, -0.5]) + r.normal(size=40))))
    strength, _ = cross_validated(x, y, weight)
    fold = (39 - np.arange(40)) % FOLDS

    def held_out(candidate: float) -> float:
        losses = []
        for i in range(FOLDS):
            w = fit(x[fold != i], y[fold != i], weight[fold != i], candidate, np.zeros(3))
            losses.append(np.mean(log_loss(x[fold == i] @ w, y[fold == i])))
        return float(np.mean(losses))

    assert held_out(strength) == pytest.approx(min(held_out(float(s)) for s in STRENGTHS), abs=1e-7)


def test_the_gamed_rows_determine_the_length_effect_if_the_model_is_always_longer() -> None:
    """All length differences are large and of one sign, so only the gamed rows show the effect of length."""
    n = 100
    r = np.random.default_rng(2)
    longer, difficulty = r.normal(-800, 50, n), np.zeros(n)
    preference = np.full(n, 0.7)
    length = np.concatenate([np.full(n, 2.0), np.full(n, -2.0)])
    same = np.zeros(2 * n)
    biased = length_controlled(
        preference, longer, difficulty, Gamed(np.where(length < 0, 0.7, 0.3), length, same, same)
    )
    fair = length_controlled(preference, longer, difficulty, Gamed(np.full(2 * n, 0.5), length, same, same))
    assert biased.rate < fair.rate - 0.05


def test_equal_lengths_leave_the_win_rate_unchanged() -> None:
    n = 50
    gamed = Gamed(np.full(2, 0.5), np.zeros(2), np.zeros(2), np.zeros(2))
    result = length_controlled(np.full(n, 0.8), np.zeros(n), np.zeros(n), gamed)
    assert result.rate == pytest.approx(0.8, abs=0.01)
    assert result.standard_error == 0
