"""Win rates against hand calculations, scipy and published verdict counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit

from preftune.measures.win_rate import PENALTY, RESAMPLES, Match, bootstrap, fitted, win_rate


def length_adjusted(outcome: Any, longer: Any, penalty: float = PENALTY) -> float:
    theta, _ = fitted(outcome[None], longer[None], penalty)
    return float(expit(theta[0]))


def test_the_win_rate_of_five_matches_equals_the_hand_calculation() -> None:
    """Contradicting verdicts are a tie. If one verdict cannot be read, the other one decides."""
    matches = [Match(1, 1, 10, 5), Match(1, 0, 5, 5), Match(0, 0, 3, 9), Match(None, 1, 4, 4), Match(None, None, 1, 1)]
    result = win_rate(matches)
    assert result.rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (result.wins, result.ties, result.losses, result.unread) == (2, 1, 1, 3)
    assert result.consistent == pytest.approx(2 / 3)
    # the response shown first won 1, 1, 0 times in the forward order and 0, 1, 1 times in the backward order
    assert result.first_shown == pytest.approx((1 + 1 + 0 + 0 + 1 + 1) / 6)
    assert (result.words, result.other_words) == (23 / 5, 24 / 5)
    with pytest.raises(ValueError, match="no verdict could be read"):
        win_rate([Match(None, None, 1, 1)])


def test_the_bootstrap_interval_matches_scipy() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 120)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert bootstrap(values) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_length_adjustment_matches_a_logistic_fit() -> None:
    """Our responses win only because they are longer."""
    generator = np.random.default_rng(0)
    longer = generator.normal(20, 15, 4000)
    x = np.tanh(longer / longer.std())
    outcome = (generator.random(4000) < 1 / (1 + np.exp(0.3 - 1.5 * x))).astype(float)

    def loss(w: Any) -> float:
        z = w[0] + w[1] * x
        return float(np.sum(np.logaddexp(0, z) - outcome * z))

    expected = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-8}).x[0]
    assert length_adjusted(outcome, longer, penalty=0) == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-4)
    assert outcome.mean() > 0.6
    assert length_adjusted(outcome, longer) < 0.47


def test_equal_lengths_leave_the_win_rate_unadjusted() -> None:
    assert length_adjusted(np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4)) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "draws", "total", "rate", "standard_error"),
    [
        (614, 12, 805, 77.01863354037268, 1.46803688292698),  # gpt4
        (606, 9, 805, 75.83850931677019, 1.4981004247868313),  # claude
        (427, 3, 803, 53.36239103362392, 1.7582560332920765),  # guanaco-13b
        (163, 20, 805, 21.490683229813666, 1.421716368655911),  # text_davinci_001
    ],
)
def test_published_verdict_counts_give_the_published_rate_and_error(
    wins: int, draws: int, total: int, rate: float, standard_error: float
) -> None:
    """Verdict counts, win rate and standard error from AlpacaEval's leaderboard of the judge claude.

    Neither the rate nor its error depends on the order of the verdicts, so the counts are enough.
    Source: tatsu-lab/alpaca_eval, leaderboards/data_AlpacaEval/claude_leaderboard.csv (one verdict per prompt).
    """
    verdicts = [1.0] * wins + [0.5] * draws + [0.0] * (total - wins - draws)
    result = win_rate([Match(verdict, None, 1, 1) for verdict in verdicts])
    assert 100 * result.rate == pytest.approx(rate, rel=1e-12)
    assert (result.wins, result.ties) == (wins, draws)
    assert 100 * stats.sem(verdicts) == pytest.approx(standard_error, rel=1e-9)
    assert 100 * (result.high - result.low) == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    assert 100 * result.length_adjusted == pytest.approx(rate, abs=0.1)  # all lengths are equal


def test_batched_fits_equal_single_fits() -> None:
    r = np.random.default_rng(0)
    outcome, longer = r.choice([0.0, 0.5, 1.0], (20, 50)), r.normal(3, 10, (20, 50))
    theta, _ = fitted(outcome, longer, 1e-3, start=(0.3, -0.2))
    single = [length_adjusted(o, d) for o, d in zip(outcome, longer, strict=True)]
    assert 1 / (1 + np.exp(-theta)) == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_policy_that_wins_all_or_no_matches_has_a_finite_adjusted_rate(value: float) -> None:
    rate = length_adjusted(np.full(30, value), np.random.default_rng(0).normal(size=30))
    assert rate == pytest.approx(value, abs=1e-3)


def test_another_seed_moves_the_interval_by_less_than_a_fifth_of_a_point() -> None:
    """With 805 prompts, as in AlpacaEval, and 10,000 resamples."""
    r = np.random.default_rng(3)
    longer = r.integers(-40, 60, 805)
    won = r.random(805) < 1 / (1 + np.exp(-0.02 * longer))
    matches = [Match(float(w), float(w), 60 + int(d), 60) for w, d in zip(won, longer, strict=True)]
    assert RESAMPLES == 10_000
    one, other = win_rate(matches, seed=0), win_rate(matches, seed=1)
    for name in ("low", "high", "length_adjusted_low", "length_adjusted_high"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=0.002), name
    assert one.length_adjusted == other.length_adjusted
    assert one.length_adjusted_low < one.length_adjusted < one.length_adjusted_high


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([(1, 0)] * 3, "all 6 verdicts favour the response shown first"),
        ([(0, 1)] * 4, "all 8 verdicts favour the response shown second"),
        ([(1, 0)] * 3 + [(0.5, 0.5)], "all 6 verdicts that are not ties favour the response shown first"),
        ([(0.5, 0.5)] * 2, "all 4 verdicts are ties"),
        ([(1, 1)] * 9, ""),  # our response wins in both orders
        ([(1, 0)] * 9 + [(1, 1)], ""),
        ([(1, 0)] * 2, ""),  # may be chance
        ([(1, None)] * 9, ""),  # judged in one order only
    ],
)
def test_verdicts_that_follow_position_or_are_all_ties_are_reported(verdicts: list[Any], reason: str) -> None:
    uninformative = win_rate([Match(*both, 1, 1) for both in verdicts]).uninformative
    assert uninformative.startswith(reason) if reason else uninformative == ""
