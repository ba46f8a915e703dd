"""The closed-form optimum, best of n by enumeration, and standard errors."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_model, random_groups

from preftune.data.layout import Budget, rows
from preftune.exact.optimum import estimate_optimum, estimate_optimum_jackknife, optimal_policy
from preftune.measures.frontier import best_of_n, measure, optimum, optimum_at
from preftune.model.logprobs import Scorer, logps
from preftune.scoring import response_logps


def test_the_optimum_of_two_responses_matches_the_hand_calculation() -> None:
    """ref = (1/4, 3/4), r = (1, 0), beta = 1/2:  pi* = (e^2, 3) / (e^2 + 3)."""
    log_ref = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    log_pi, log_z = optimal_policy(log_ref, torch.tensor([1.0, 0.0], dtype=torch.float64), 0.5)
    assert log_pi.exp().tolist() == pytest.approx([math.e**2 / (math.e**2 + 3), 3 / (math.e**2 + 3)])
    assert log_z.item() == pytest.approx(math.log(math.e**2 / 4 + 3 / 4))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(0.1, 5), st.integers(0, 100))
def test_no_policy_has_a_larger_objective_than_the_optimum(reward: list[float], beta: float, seed: int) -> None:
    """E[r] - beta KL is largest at pi*, where it is beta log Z."""
    generator = torch.Generator().manual_seed(seed)
    log_ref = torch.randn(len(reward), generator=generator, dtype=torch.float64).log_softmax(0)
    r = torch.tensor(reward, dtype=torch.float64)

    def value(log_pi: torch.Tensor) -> float:
        return float((log_pi.exp() * (r - beta * (log_pi - log_ref))).sum())

    log_pi, log_z = optimal_policy(log_ref, r, beta)
    assert value(log_pi) == pytest.approx(beta * float(log_z), abs=1e-9)
    other = (log_pi + 0.3 * torch.randn(len(reward), generator=generator, dtype=torch.float64)).log_softmax(0)
    assert value(other) <= value(log_pi) + 1e-12


def test_the_estimated_optimum_is_exact_for_a_uniform_reference() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    estimate = estimate_optimum(rewards, 1.0)
    weight = torch.tensor([1, math.e, math.e**2]) / (1 + math.e + math.e**2)
    assert estimate.reward == pytest.approx((float(weight @ rewards[0]) + 1) / 2)
    kl = float((weight * (3 * weight).log()).sum())
    assert estimate.kl == pytest.approx(kl / 2)
    assert estimate.effective == pytest.approx((1 / float((weight**2).sum()) + 3) / 2)


@given(st.integers(1, 6), st.integers(0, 50))
def test_best_of_n_is_the_mean_over_all_subsets(n: int, seed: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=(3, 6))
    expected = np.mean([[max(subset) for subset in combinations(row, n)] for row in rewards])
    point = best_of_n(rewards, n)
    assert point.reward == pytest.approx(expected)
    assert point.kl == pytest.approx(math.log(n) - (n - 1) / n)


def test_best_of_n_with_fewer_than_n_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs at least 9 samples, got 6"):
        best_of_n(np.zeros((1, 6)), 9)


def test_the_optimum_at_a_kl_lies_on_the_curve() -> None:
    rewards = np.random.default_rng(0).normal(size=(20, 64))
    for point in optimum(rewards, [2.0, 1.0, 0.5]):
        assert optimum_at(rewards, point.kl) == pytest.approx(point.reward, abs=1e-6)


@given(st.integers(2, 7), st.floats(0.02, 5), st.integers(0, 50))
def test_the_corrected_optimum_is_the_jackknife_estimate(samples: int, beta: float, seed: int) -> None:
    """Computed by leaving out each sample once, including ties for the highest reward and a beta near 0."""
    rewards = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (3, samples)) / 2)
    corrected, whole = estimate_optimum_jackknife(rewards, beta), estimate_optimum(rewards, beta)
    without = [estimate_optimum(torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1), beta) for i in range(samples)]
    for name in ("reward", "kl"):
        mean = sum(getattr(t, name) for t in without) / samples
        expected = samples * getattr(whole, name) - (samples - 1) * mean
        assert getattr(corrected, name) == pytest.approx(expected, abs=1e-9), name


def test_the_corrected_optimum_from_few_samples_matches_the_closed_form() -> None:
    """For normal rewards the optimum at beta has reward 1 / beta and KL 1 / (2 beta^2), so reward sqrt(2 KL)."""
    rewards = np.random.default_rng(0).normal(size=(4000, 24))
    for kl in (0.5, 1.0):
        assert optimum_at(rewards, kl) == pytest.approx(math.sqrt(2 * kl), rel=0.02)
    assert estimate_optimum(torch.from_numpy(rewards), 1 / math.sqrt(2)).reward < 0.95 * math.sqrt(2)


def test_best_of_n_lies_below_the_optimum() -> None:
    """With bounded rewards and as few samples as in the demo."""
    rewards = np.tanh(np.random.default_rng(1).normal(size=(100, 24)))
    for n in range(2, 17):
        chosen = best_of_n(rewards, n)
        assert chosen.reward < optimum_at(rewards, chosen.kl), n


def test_the_standard_errors_of_a_point_are_over_prompts() -> None:
    point = measure("x", np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert (point.kl, point.kl_se) == (2.0, 0.0)
    assert (point.reward, point.reward_se) == (0.5, pytest.approx(0.5))


def test_response_logps_keep_the_order_of_the_groups() -> None:
    scorer, groups = Scorer.of(make_model()), random_groups(6, responses=3)
    logps_PM = response_logps(scorer, groups, Budget("rows", 40))
    for row, group in zip(logps_PM, groups, strict=True):
        assert row == pytest.approx(logps(scorer, rows([group])).sum_S.tolist(), abs=1e-5)
