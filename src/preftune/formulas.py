"""Formulas and rules that several packages share: the implicit reward, the value of a tie, the seed of a step."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Numbers = TypeVar("Numbers", float, torch.Tensor, npt.NDArray[np.float64])


def implicit_reward(log_policy: Numbers, log_reference: Numbers, beta: float) -> Numbers:
    """The reward that a policy implies: beta (log pi - log ref), up to a constant for each prompt.

    Works on floats, arrays and tensors of any shape.
    Source: Rafailov et al. 2023, arXiv:2305.18290, section 5.1.
    """
    return beta * (log_policy - log_reference)


def win(margin: Numbers) -> Numbers:
    """1 where the margin is positive, 0 where it is negative, 1/2 for a tie. The mean of it is the accuracy."""
    if isinstance(margin, torch.Tensor):
        return 0.5 * (1 + torch.sign(margin))
    return 0.5 * (1 + np.sign(margin))  # type: ignore[no-any-return]


def step_seed(seed: int, step: int) -> int:
    """The seed for the random numbers of one step or round of a run that was started with `seed`."""
    return seed * 1_000_003 + step
