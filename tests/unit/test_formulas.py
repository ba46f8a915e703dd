"""The rules that several packages share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune.formulas import implicit_reward, labelled_margin, win


@pytest.mark.parametrize(("probability", "expected"), [(0.9, 2.0), (0.5, 0.0), (0.1, -2.0)])
def test_the_margin_follows_the_label(probability: float, expected: float) -> None:
    assert labelled_margin(2.0, probability) == expected
    assert labelled_margin(np.array([2.0, -2.0]), np.array([probability] * 2)).tolist() == [expected, -expected]


def test_a_tie_counts_one_half() -> None:
    assert win(torch.tensor([3.0, 0.0, -3.0])).tolist() == [1.0, 0.5, 0.0]
    assert [float(win(margin)) for margin in (3.0, 0.0, -3.0)] == [1.0, 0.5, 0.0]


def test_the_implicit_reward_is_the_scaled_log_ratio() -> None:
    assert implicit_reward(-1.0, -3.0, 0.5) == 1.0
