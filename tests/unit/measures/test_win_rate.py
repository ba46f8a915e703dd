"""Win rates: the arithmetic, against scipy, by hand and on published counts of verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from preftune.measures.win_rate import RESAMPLES, Match, bootstrap, fitted, length_adjusted, win_rate


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


def test_length_adjustment_is_the_logistic_fit() -> None:
    """Our responses win because they are longer: of equal length they would not."""
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


def test_no_difference_in_length() -> None:
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
    assert 100 * found.length_adjusted == pytest.approx(rate, abs=0.1)  # equal lengths: nothing to control


def test_many_fits_at_once_are_the_single_fits() -> None:
    r = np.random.default_rng(0)
    outcome, longer = r.choice([0.0, 0.5, 1.0], (20, 50)), r.normal(3, 10, (20, 50))
    theta, _ = fitted(outcome, longer, 1e-3, start=(0.3, -0.2))
    single = [length_adjusted(o, d) for o, d in zip(outcome, longer, strict=True)]
    assert 1 / (1 + np.exp(-theta)) == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_policy_that_wins_everything_or_nothing_has_a_finite_rate(value: float) -> None:
    found = length_adjusted(np.full(30, value), np.random.default_rng(0).normal(size=30))
    assert found == pytest.approx(value, abs=1e-3)


def test_another_seed_gives_the_same_interval_to_a_fifth_of_a_point() -> None:
    """805 prompts, as many as AlpacaEval has, and 10,000 resamples."""
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
    ("verdicts", "sentence"),
    [
        ([(1, 0)] * 3, "all 6 verdicts favour the response shown first"),
        ([(0, 1)] * 4, "all 8 verdicts favour the response shown second"),
        ([(1, 0)] * 3 + [(0.5, 0.5)], "all 6 verdicts that are not ties favour the response shown first"),
        ([(0.5, 0.5)] * 2, "all 4 verdicts are ties"),
        ([(1, 1)] * 9, ""),  # ours wins in both orders
        ([(1, 0)] * 9 + [(1, 1)], ""),
        ([(1, 0)] * 2, ""),  # may be chance
        ([(1, None)] * 9, ""),  # one order only
    ],
)
def test_verdicts_that_say_nothing_are_noticed(verdicts: list[Any], sentence: str) -> None:
    """(forward, backward): 1 if our response won when it was shown first, when it was shown second."""
    found = win_rate([Match(*both, 1, 1) for both in verdicts]).uninformative
    assert found.startswith(sentence) if sentence else found == ""
