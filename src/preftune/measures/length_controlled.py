"""AlpacaEval's length-controlled win rate in its full form, from a judge's preferences and the benchmark's data.

    logit P(the model wins | prompt) = phi tanh(d / std(d)) + psi difficulty + theta

d is the length of the baseline's response minus that of the model's, in characters. The weights phi, psi and theta
minimise the log loss plus an L1 penalty. The fit also uses the rows of two gamed baselines (the baseline prompted to be
verbose, and to be concise), with weight 0.2 / 2 and without theta. The result is the mean of P at d = 0.

Source: Dubois et al. 2024, arXiv:2404.04475, and tatsu-lab/alpaca_eval, metrics/glm_winrate.py, where this form is
called length_controlled_v1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from preftune.formulas import Floats, mean_and_error

GAMED_WEIGHT = 0.2 / 2  # weight of a row of one of the two gamed baselines
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # weights of the log loss relative to the penalty; scikit-learn's default grid


@dataclass(frozen=True, slots=True)
class Gamed:
    """Rows of the gamed baselines, (M,) each.

    preference  in [0, 1], or nan if the verdict could not be read
    length      d / std(d)
    plain       1 for a row that is marked as not gamed, which gets full weight and theta, else 0
    """

    preference: Floats
    length: Floats
    difficulty: Floats
    plain: Floats


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate as a share, with the standard error of the mean prediction over prompts, as in AlpacaEval.

    strength  weight of the log loss relative to the penalty, chosen by cross-validation
    weights   phi, psi, theta
    """

    rate: float
    standard_error: float
    strength: float
    weights: tuple[float, float, float]


def length_controlled(preference: Floats, longer: Floats, difficulty: Floats, gamed: Gamed) -> LengthControlled:
    """Compute the length-controlled win rate of one model.

    preference  (N,) in [0, 1], 1 if the model wins; nan where the verdict could not be read (predicted, not fitted)
    longer      (N,) characters of the baseline's response minus those of the model's
    difficulty  (N,) difficulty of the prompt, from the benchmark
    """
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    length = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    own = np.column_stack([length, difficulty, np.ones_like(length)])
    baselines = np.column_stack([np.tanh(gamed.length), gamed.difficulty, gamed.plain])
    x, y = np.concatenate([baselines, own]), np.concatenate([gamed.preference, preference])
    weight = np.concatenate([np.where(gamed.plain > 0, 1.0, GAMED_WEIGHT), np.ones(len(own))])
    readable = ~np.isnan(y)
    strength, weights = cross_validated(x[readable], y[readable], weight[readable])
    rate, error = mean_and_error(expit(difficulty * weights[1] + weights[2])[None])
    phi, psi, theta = (float(w) for w in weights)
    return LengthControlled(rate, error, strength, (phi, psi, theta))


def cross_validated(x: Floats, y: Floats, weight: Floats) -> tuple[float, Floats]:
    """Choose the strength with the smallest mean held-out log loss, and fit the weights with it on all rows.

    Row i is held out in fold (n - 1 - i) mod 5. The original assigns folds in the order in which numpy sorts equal
    numbers. For a stable sort that is the same assignment; numpy's default sort may differ between machines.
    """
    fold = (len(y) - 1 - np.arange(len(y))) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held_out in range(FOLDS):
        train, test = fold != held_out, fold == held_out
        start = np.zeros(x.shape[1])
        for i, strength in enumerate(STRENGTHS):
            start = fit(x[train], y[train], weight[train], float(strength), start)
            losses[i] += float(np.mean(weight[test] * log_loss(x[test] @ start, y[test])))
    best = float(STRENGTHS[int(np.argmin(losses))])
    return best, fit(x, y, weight, best, np.zeros(x.shape[1]))


def log_loss(z: Floats, y: Floats) -> Floats:
    """Return the log loss of each row with logit z and target y in [0, 1]."""
    return np.logaddexp(0, z) - y * z


def fit(x: Floats, y: Floats, weight: Floats, strength: float, start: Floats) -> Floats:
    """Return the w that minimises  sum |w| + strength * sum weight * log loss.

    w is written as the difference of two non-negative vectors, so that the penalty is linear and the problem smooth.
    """
    k = x.shape[1]
    share = weight / weight.sum()
    penalty = 1 / (strength * weight.sum())  # objective / (strength * sum of weights): one scale for all strengths

    def loss(parts: Floats) -> tuple[float, Floats]:
        z = x @ (parts[:k] - parts[k:])
        slope = x.T @ (share * (expit(z) - y))
        value = float(share @ log_loss(z, y)) + penalty * float(parts.sum())
        return value, np.concatenate([penalty + slope, penalty - slope])

    begin = np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    best = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * k), options=tight).x
    return np.asarray(best[:k] - best[k:], dtype=np.float64)
