"""Calibrated probability that a label is wrong, from held-out margins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

Floats = npt.NDArray[np.float64]
MAX_SLOPE = 1e3  # for margins in units of their mean size; reached if the margins agree with every label


def slope(margin_P: Floats, weight_P: Floats) -> float:
    """Return the a >= 0 that maximises the likelihood of the labels, sum_i weight_i log sigmoid(a margin_i).

    It is concave in a. The margins must come from models that were not trained on these labels. Returns 0 if the
    margins predict the labels no better than chance.
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
    if gradient(MAX_SLOPE) >= 0:
        return MAX_SLOPE / size
    return float(brentq(gradient, 0.0, MAX_SLOPE)) / size


def confidence(margin_P: Floats, slope: float) -> Floats:
    """Return the (P,) calibrated probabilities that the labels are wrong: sigmoid(-slope * margin)."""
    return np.asarray(expit(-slope * margin_P), dtype=np.float64)
