"""What several packages share: implicit reward, ties, mean with standard error, seed of a step."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
Z95 = 1.96  # standard errors on each side of a 95 % interval
Numbers = TypeVar("Numbers", float, "torch.Tensor", Floats)
Margins = TypeVar("Margins", float, Floats)


def implicit_reward(log_policy: Numbers, log_reference: Numbers, beta: float) -> Numbers:
    """Return the implicit reward beta (log pi - log ref), defined up to a constant per prompt.

    Source: Rafailov et al. 2023, arXiv:2305.18290, section 5.1.
    """
    return beta * (log_policy - log_reference)


def win(margin: Numbers) -> Numbers:
    """Return 1 where the margin is positive, 0 where it is negative, 1/2 for a tie. Its mean is the accuracy."""
    if isinstance(margin, float | int | np.generic | np.ndarray):
        return 0.5 * (1 + np.sign(margin))  # type: ignore[no-any-return]
    return 0.5 * (1 + margin.sign())


def mean_and_error(value_PM: Floats) -> tuple[float, float]:
    """Return the mean of M values for each of P prompts, and its standard error over prompts (P = 1: over values)."""
    means = value_PM.mean(axis=1) if len(value_PM) > 1 else value_PM[0]
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0


def labelled_margin(margin: Margins, probability: Margins) -> Margins:
    """Return the margin in favour of the response that the label prefers.

    A probability below 1/2 swaps the responses. At exactly 1/2 the label is a tie, and the result is 0.
    """
    return margin * np.sign(probability - 0.5)  # type: ignore[no-any-return]


def generator_of(text: str) -> np.random.Generator:
    """Return the random generator for a text that names a draw: the same numbers whatever else is drawn."""
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def step_seed(seed: int, step: int) -> int:
    """Return the seed of one step or round in a run with the given seed."""
    return seed * 1_000_003 + step
