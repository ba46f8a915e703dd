"""From verdicts to win rates: ties, intervals, length, position. Pure arithmetic.

Every pair of responses is judged in both orders. A verdict is 1 if our response won, 0 if the other did, 1/2 for a tie;
the outcome of a pair is the mean of its two verdicts, so a judge that follows the order alone makes ties of everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from preftune.formats.file_checks import uninformative_verdicts
from preftune.types import Judgement

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
"""Of every interval. Another seed then moves an end of it by about 1.4 % of its half-width: by 0.05 points for a win
rate of one half on 805 prompts."""
CHUNK = 200_000  # resampled matches in memory at a time
PENALTY = 1e-3  # on phi, times phi^2 / 2, beside the mean log loss


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

    unread           verdicts, of which each of the `matches` has two
    length_adjusted  see `length_adjusted`; AlpacaEval's length-controlled win rate is in length_controlled.py
    uninformative    why the verdicts say nothing about the responses, or ""
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    matches: int
    unread: int
    length_adjusted: float
    length_adjusted_low: float
    length_adjusted_high: float
    first_shown: float
    consistent: float
    words: float
    other_words: float
    uninformative: str


def win_rate(matches: Sequence[Match], seed: int = 0) -> WinRate:
    """Raises ValueError if not one match could be read."""
    read = [m for m in matches if m.outcome is not None]
    if not read:
        raise ValueError("not one verdict could be read")
    outcome = np.array([m.outcome for m in read], dtype=np.float64)
    longer = np.array([m.length - m.other_length for m in read], dtype=np.float64)
    low, high = bootstrap(outcome, seed)
    theta, phi = (float(weight[0]) for weight in fitted(outcome[None], longer[None], PENALTY))
    draws = (fitted(outcome[rows], longer[rows], PENALTY, (theta, phi))[0] for rows in resamples(len(read), seed))
    adjusted = interval([expit(draw) for draw in draws])
    both = [m for m in read if m.forward is not None and m.backward is not None]
    firsts = for_the_first(both)
    return WinRate(
        rate=float(outcome.mean()),
        low=low,
        high=high,
        wins=int((outcome > 0.5).sum()),
        ties=int((outcome == 0.5).sum()),
        losses=int((outcome < 0.5).sum()),
        matches=len(matches),
        unread=sum(v is None for m in matches for v in (m.forward, m.backward)),
        length_adjusted=float(expit(theta)),
        length_adjusted_low=adjusted[0],
        length_adjusted_high=adjusted[1],
        first_shown=float(np.mean(firsts)) if firsts else 0.5,
        consistent=float(np.mean([m.forward == m.backward for m in both])) if both else 0.0,
        words=float(np.mean([m.length for m in matches])),
        other_words=float(np.mean([m.other_length for m in matches])),
        uninformative=why_uninformative(both),
    )


def for_the_first(matches: Sequence[Match]) -> list[float]:
    """The verdicts of matches that could be read in both orders: 1 for the response shown first, 0 for the other."""
    return [v for m in matches if m.forward is not None and m.backward is not None for v in (m.forward, 1 - m.backward)]


def why_uninformative(matches: Sequence[Match]) -> str:
    """Why the verdicts say nothing about the responses, or ""."""
    verdicts = for_the_first(matches)
    first, second = sum(v > 0.5 for v in verdicts), sum(v < 0.5 for v in verdicts)
    return uninformative_verdicts(first, second, len(verdicts) - first - second)


def bootstrap(values: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    return interval([values[rows].mean(axis=1) for rows in resamples(len(values), seed)])


def resamples(n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """RESAMPLES draws of n of n rows with replacement, in pieces of (B, n)."""
    generator, size = np.random.default_rng(seed), max(1, CHUNK // n)
    for done in range(0, RESAMPLES, size):
        yield generator.integers(n, size=(min(size, RESAMPLES - done), n))


def interval(pieces: Sequence[Floats]) -> tuple[float, float]:
    """The middle 95 % of the values."""
    low, high = np.quantile(np.concatenate(pieces), [0.025, 0.975])
    return float(low), float(high)


def length_adjusted(outcome: Floats, longer: Floats, penalty: float = PENALTY) -> float:
    """The win rate between responses of equal length, by a logistic fit.

    P(win) = sigmoid(theta + phi tanh(d / std(d))), d = our length - the other's; the result is sigmoid(theta). Only phi
    is drawn towards 0, so without a difference in length the result is the win rate itself.

    This is not the length-controlled win rate that AlpacaEval publishes: its difficulty of instructions, the rows of
    its gamed baselines and its cross-validated penalty exist for its own prompts only, see measures.length_controlled.
    Source of the form: Dubois et al. 2024, arXiv:2404.04475.
    """
    theta, _ = fitted(outcome[None], longer[None], penalty)
    return float(expit(theta[0]))


def fitted(
    outcome: Floats, longer: Floats, penalty: float, start: tuple[float, float] = (0.0, 0.0)
) -> tuple[Floats, Floats]:
    """(B,) theta and phi of B fits of n matches each, by Newton's method from `start`."""
    spread = longer.std(axis=1, keepdims=True)
    x = np.tanh(np.divide(longer, spread, out=np.zeros_like(longer), where=spread > 0))
    theta, phi = (np.full(len(outcome), value) for value in start)
    n = outcome.shape[1]
    for _ in range(100):
        p = expit(theta[:, None] + phi[:, None] * x)
        error, w = p - outcome, p * (1 - p)
        wx = w * x
        down, down_x = error.mean(1), np.einsum("bn,bn->b", error, x) / n + penalty * phi
        if max(float(np.abs(down).max()), float(np.abs(down_x).max())) < 1e-7:
            break
        a, b, c = w.mean(1) + 1e-9, wx.mean(1), np.einsum("bn,bn->b", wx, x) / n + penalty
        determinant = a * c - b * b
        theta = theta - np.clip((c * down - b * down_x) / determinant, -1, 1)  # at most 1, or it may overshoot
        phi = phi - np.clip((a * down_x - b * down) / determinant, -1, 1)
    return theta, phi
