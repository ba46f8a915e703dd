"""Win rates: the arithmetic, against scipy, by hand and on published counts of verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from preftune.evaluate.winrate import Match, bootstrap, length_controlled, win_rate


def test_outcomes_by_hand() -> None:
    """A judge that always names the first shown makes ties of everything; one unread verdict leaves the other."""
    matches = [Match(1, 1, 10, 5), Match(1, 0, 5, 5), Match(0, 0, 3, 9), Match(None, 1, 4, 4), Match(None, None, 1, 1)]
    found = win_rate(matches)
    assert found.rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (found.wins, found.ties, found.losses, found.unread) == (2, 1, 1, 3)
    assert found.consistent == pytest.approx(2 / 3)
    # forward verdicts 1, 1, 0; backward ones say that the first shown (the other) won 0, 1, 1 times
    assert found.first_shown == pytest.approx((1 + 1 + 0 + 0 + 1 + 1) / 6)
    assert (found.words, found.other_words) == (23 / 5, 24 / 5)
    with pytest.raises(ValueError, match="not one verdict"):
        win_rate([Match(None, None, 1, 1)])


def test_the_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 120)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert bootstrap(values) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_length_control_is_the_logistic_fit() -> None:
    """Our responses win because they are longer: of equal length they would not."""
    generator = np.random.default_rng(0)
    longer = generator.normal(20, 15, 4000)
    x = np.tanh(longer / longer.std())
    outcome = (generator.random(4000) < 1 / (1 + np.exp(0.3 - 1.5 * x))).astype(float)

    def loss(w: Any) -> float:
        z = w[0] + w[1] * x
        return float(np.sum(np.logaddexp(0, z) - outcome * z))

    expected = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-8}).x[0]
    assert length_controlled(outcome, longer, penalty=0) == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-4)
    assert outcome.mean() > 0.6
    assert length_controlled(outcome, longer) < 0.47


def test_no_difference_in_length() -> None:
    assert length_controlled(np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4)) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "draws", "total", "rate", "standard_error"),
    [
        (614, 12, 805, 77.01863354037268, 1.46803688292698),  # gpt4
        (606, 9, 805, 75.83850931677019, 1.4981004247868313),  # claude
        (427, 3, 803, 53.36239103362392, 1.7582560332920765),  # guanaco-13b
        (163, 20, 805, 21.490683229813666, 1.421716368655911),  # text_davinci_001
    ],
)
def test_published_verdicts(wins: int, draws: int, total: int, rate: float, standard_error: float) -> None:
    """AlpacaEval's leaderboard of the judge claude: counts of verdicts, the win rate and its standard error.

    A rate and its error do not depend on the order of the verdicts, so their counts are the file.

    Source: tatsu-lab/alpaca_eval, leaderboards/data_AlpacaEval/claude_leaderboard.csv (one verdict a prompt).
    """
    verdicts = [1.0] * wins + [0.5] * draws + [0.0] * (total - wins - draws)
    found = win_rate([Match(verdict, None, 1, 1) for verdict in verdicts])
    assert 100 * found.rate == pytest.approx(rate, rel=1e-12)
    assert (found.wins, found.ties) == (wins, draws)
    assert 100 * stats.sem(verdicts) == pytest.approx(standard_error, rel=1e-9)
    assert 100 * (found.high - found.low) == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    assert 100 * found.length_controlled == pytest.approx(rate, abs=0.1)  # equal lengths: nothing to control
