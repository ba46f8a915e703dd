"""From verdicts to win rates: ties, intervals, length, position. Pure arithmetic.

Every pair of responses is judged in both orders. A verdict is 1 if our response won, 0 if the other did, 1/2 for a tie;
the outcome of a pair is the mean of its two verdicts, so a judge that follows the order alone makes ties of everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from preftune.types import Judgement

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000


def sides(judgement: Judgement) -> tuple[int, int] | None:
    """(better, worse) as the label says: the other way round below a probability of one half, None for a tie at it."""
    if judgement.probability == 0.5:
        return None
    order = judgement.better, judgement.worse
    return order if judgement.probability > 0.5 else order[::-1]


@dataclass(frozen=True, slots=True)
class Match:
    """What came of one prompt. `forward`: our response was shown first; None where the answer could not be read."""

    forward: float | None
    backward: float | None
    length: int
    other_length: int

    @property
    def outcome(self) -> float | None:
        """The mean of the verdicts that could be read."""
        read = [v for v in (self.forward, self.backward) if v is not None]
        return sum(read) / len(read) if read else None


@dataclass(frozen=True, slots=True)
class WinRate:
    """Shares are of matches that could be read; `low`, `high`: 95 % bootstrap interval over matches.

    unread   verdicts, of which each of the `matches` has two
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    matches: int
    unread: int
    length_controlled: float
    length_low: float
    length_high: float
    first_shown: float
    consistent: float
    words: float
    other_words: float


def win_rate(matches: Sequence[Match], seed: int = 0) -> WinRate:
    """Raises ValueError if not one match could be read."""
    read = [m for m in matches if m.outcome is not None]
    if not read:
        raise ValueError("not one verdict could be read")
    outcome = np.array([m.outcome for m in read], dtype=np.float64)
    longer = np.array([m.length - m.other_length for m in read], dtype=np.float64)
    low, high = bootstrap(outcome, seed)
    generator = np.random.default_rng(seed)
    resampled = [generator.integers(len(read), size=len(read)) for _ in range(RESAMPLES // 10)]
    controlled = [length_controlled(outcome[rows], longer[rows]) for rows in resampled]
    both = [m for m in read if m.forward is not None and m.backward is not None]
    firsts = [v for m in both for v in (m.forward, 1 - (m.backward or 0.0)) if v is not None]
    return WinRate(
        rate=float(outcome.mean()),
        low=low,
        high=high,
        wins=int((outcome > 0.5).sum()),
        ties=int((outcome == 0.5).sum()),
        losses=int((outcome < 0.5).sum()),
        matches=len(matches),
        unread=sum(v is None for m in matches for v in (m.forward, m.backward)),
        length_controlled=length_controlled(outcome, longer),
        length_low=float(np.quantile(controlled, 0.025)),
        length_high=float(np.quantile(controlled, 0.975)),
        first_shown=float(np.mean(firsts)) if firsts else 0.5,
        consistent=float(np.mean([m.forward == m.backward for m in both])) if both else 0.0,
        words=float(np.mean([m.length for m in matches])),
        other_words=float(np.mean([m.other_length for m in matches])),
    )


def bootstrap(values: Floats, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[rows].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def length_controlled(outcome: Floats, longer: Floats, penalty: float = 1e-3) -> float:
    """The win rate between responses of equal length, by a logistic fit.

    P(win) = sigmoid(theta + phi tanh(d / std(d))), d = our length - the other's; the answer is sigmoid(theta). Only phi
    is drawn towards 0, so without a difference in length the answer is the win rate itself.
    Source: Dubois et al. 2024, arXiv:2404.04475, without its difficulty of instructions, which exists for one set only.
    """
    spread = float(longer.std())
    x = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = weights[0] + weights[1] * x
        p = 1 / (1 + np.exp(-z))
        value = float(np.mean(np.logaddexp(0, z) - outcome * z) + penalty * weights[1] ** 2 / 2)
        error = p - outcome
        return value, np.array([error.mean(), (error * x).mean() + penalty * weights[1]])

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS")
    return float(1 / (1 + np.exp(-found.x[0])))
