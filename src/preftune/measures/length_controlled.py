"""AlpacaEval's length-controlled win rate in its full form, from a judge's preferences and the benchmark's own data.

    logit P(the model wins | prompt) = phi tanh(d / std(d)) + psi difficulty + theta

d is the length of the baseline's response less that of the model's, in characters. The weights minimise the log loss of
the preferences, with an L1 penalty on all three. The rows of two gamed baselines (the baseline told to be verbose, and
to be concise) are added with weight 0.2 / 2 each, and with theta left out. The figure is the mean of P at d = 0.

Source: Dubois et al. 2024, arXiv:2404.04475, and tatsu-lab/alpaca_eval, metrics/glm_winrate.py, where this form has the
name length_controlled_v1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

Floats = npt.NDArray[np.float64]

GAMED_WEIGHT = 0.2 / 2  # of a row of one of the two gamed baselines
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # of the log loss against the penalty; the default of scikit-learn's search


@dataclass(frozen=True, slots=True)
class Gamed:
    """The rows of the gamed baselines: (M,) each.

    preference  in [0, 1], or nan
    length      d / std(d)
    plain       1 for a row that is marked as not gamed, which has full weight and theta, else 0
    """

    preference: Floats
    length: Floats
    difficulty: Floats
    plain: Floats


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Shares, not percent. `standard_error` is that of the mean prediction over prompts, as AlpacaEval prints it.

    strength  of the log loss against the penalty, chosen by cross-validation
    weights   phi, psi, theta
    """

    rate: float
    standard_error: float
    strength: float
    weights: tuple[float, float, float]


def length_controlled(preference: Floats, longer: Floats, difficulty: Floats, gamed: Gamed) -> LengthControlled:
    """The full form for one model.

    preference  (N,) in [0, 1], 1 if the model wins; nan where the judge could not be read: predicted, not learned from
    longer      (N,) characters of the baseline's response less those of the model's
    difficulty  (N,) of the prompt, from the benchmark
    """
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    length = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    own = np.column_stack([length, difficulty, np.ones_like(length)])
    theirs = np.column_stack([np.tanh(gamed.length), gamed.difficulty, gamed.plain])
    x, y = np.concatenate([theirs, own]), np.concatenate([gamed.preference, preference])
    weight = np.concatenate([np.where(gamed.plain > 0, 1.0, GAMED_WEIGHT), np.ones(len(own))])
    read = ~np.isnan(y)
    strength, weights = cross_validated(x[read], y[read], weight[read])
    predicted = expit(difficulty * weights[1] + weights[2])
    error = float(predicted.std(ddof=1) / np.sqrt(len(predicted))) if len(predicted) > 1 else 0.0
    phi, psi, theta = (float(w) for w in weights)
    return LengthControlled(float(predicted.mean()), error, strength, (phi, psi, theta))


def cross_validated(x: Floats, y: Floats, weight: Floats) -> tuple[float, Floats]:
    """The strength with the least held-out log loss, averaged over folds, and the weights for it on all rows.

    Row i is held out in fold (n - 1 - i) mod 5. The original deals the rows out in the order in which numpy sorts equal
    numbers, which is this one for a stable sort; on its machines it may be another.
    """
    fold = (len(y) - 1 - np.arange(len(y))) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        start = np.zeros(x.shape[1])
        for i, strength in enumerate(STRENGTHS):
            start = fit(x[train], y[train], weight[train], float(strength), start)
            losses[i] += float(np.mean(weight[test] * log_loss(x[test] @ start, y[test])))
    best = float(STRENGTHS[int(np.argmin(losses))])
    return best, fit(x, y, weight, best, np.zeros(x.shape[1]))


def log_loss(z: Floats, y: Floats) -> Floats:
    """Of each row with logit z and a target in [0, 1]."""
    return np.logaddexp(0, z) - y * z


def fit(x: Floats, y: Floats, weight: Floats, strength: float, start: Floats) -> Floats:
    """The minimum of  sum |w| + strength * sum weight * log loss.

    w is the difference of two vectors that are not negative, which makes the penalty linear and the problem smooth.
    """
    k = x.shape[1]
    share = weight / weight.sum()
    penalty = 1 / (strength * weight.sum())  # both divided by strength * sum of weights: one scale for all strengths

    def loss(parts: Floats) -> tuple[float, Floats]:
        z = x @ (parts[:k] - parts[k:])
        slope = x.T @ (share * (expit(z) - y))
        value = float(share @ log_loss(z, y)) + penalty * float(parts.sum())
        return value, np.concatenate([penalty + slope, penalty - slope])

    begin = np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * k), options=tight)
    return np.asarray(found.x[:k] - found.x[k:], dtype=np.float64)
