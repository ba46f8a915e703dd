"""How sure held-out margins are that a label is the wrong way round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

Floats = npt.NDArray[np.float64]
STEEPEST = 1e3  # of margins in their own mean size: labels that the margins always agree with


def slope(margin_P: Floats, weight_P: Floats) -> float:
    """The a >= 0 under which sigmoid(a margin) is most likely to be the probability of the labels.

    likelihood   sum_i weight_i log sigmoid(a margin_i), concave in a; the margins must come from models that have not
                 seen the labels. 0 if they rank no better than chance.
    Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599.
    """
    size = float(np.mean(np.abs(margin_P)))
    if size == 0:
        return 0.0
    scaled = margin_P / size

    def gradient(a: float) -> float:
        return float(np.sum(weight_P * scaled * expit(-a * scaled)))

    if gradient(0.0) <= 0:
        return 0.0
    if gradient(STEEPEST) >= 0:
        return STEEPEST / size
    return float(brentq(gradient, 0.0, STEEPEST)) / size


def confidence(margin_P: Floats, slope: float) -> Floats:
    """(P,) the calibrated probability that a judge would label such a pair the other way round: sigmoid(-a margin)."""
    return np.asarray(expit(-slope * margin_P), dtype=np.float64)
