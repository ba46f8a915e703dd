"""PPO's formulas against values computed by hand and against explicit loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from preftune.losses.ppo import (
    adapt_kl_coefficient,
    advantages,
    explained_variance,
    kl_estimate,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)


def fp64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_equal_the_hand_computed_values() -> None:
    """Two responses, gamma 0.9, lambda 0.5."""
    reward, value = fp64(0.0, 0.0, 1.0, 2.0), fp64(0.5, 0.4, 0.2, 1.5)
    result = advantages(reward, value, torch.tensor([3, 1]), gamma=0.9, lam=0.5)
    last = 1.0 - 0.2
    middle = (0.9 * 0.2 - 0.4) + 0.45 * last
    first = (0.9 * 0.4 - 0.5) + 0.45 * middle
    assert result.advantage_N.tolist() == pytest.approx([first, middle, last, 0.5])
    assert first == pytest.approx(-0.077)
    assert result.return_N.tolist() == pytest.approx([0.5 + first, 0.4 + middle, 1.0, 2.0])


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_advantages_are_the_discounted_sum_of_deltas(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """A_t = sum_k (gamma lam)^k delta_{t+k}."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    reward = torch.randn(n, generator=generator, dtype=torch.float64)
    value = torch.randn(n, generator=generator, dtype=torch.float64)
    result = advantages(reward, value, torch.tensor(lengths), gamma, lam)
    start = 0
    for length in lengths:
        r, v = reward[start : start + length].tolist(), [*value[start : start + length].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            assert float(result.advantage_N[start + t]) == pytest.approx(expected, abs=1e-9)
            assert float(result.return_N[start + t]) == pytest.approx(expected + v[t], abs=1e-9)
        start += length


def test_with_lambda_1_the_return_is_the_sum_of_later_rewards() -> None:
    result = advantages(fp64(1, 2, 3), fp64(9, -4, 7), torch.tensor([3]), gamma=1.0, lam=1.0)
    assert result.return_N.tolist() == [6, 5, 3]


def test_the_score_is_added_to_the_reward_of_the_last_token() -> None:
    result = token_rewards(fp64(5, 7), fp64(0.1, 0.2, 0.3), 2.0, torch.tensor([2, 1]))
    assert result.tolist() == pytest.approx([-0.2, 5 - 0.4, 7 - 0.6])


def test_kl_estimators_equal_their_formulas() -> None:
    d = math.log(0.6 / 0.5)
    policy, reference = fp64(math.log(0.6)), fp64(math.log(0.5))
    assert float(kl_estimate(policy, reference, "k1")) == pytest.approx(d)
    assert float(kl_estimate(policy, reference, "k2")) == pytest.approx(d * d / 2)
    assert float(kl_estimate(policy, reference, "k3")) == pytest.approx(0.5 / 0.6 - 1 + d)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    """Exact expectations under a policy over five tokens."""
    policy = torch.log_softmax(fp64(0.3, -1, 2, 0.1, 0.7), 0)
    reference = torch.log_softmax(fp64(1, -0.5, 0.5, 0.2, 0), 0)
    exact = float((policy.exp() * (policy - reference)).sum())
    for estimator in ("k1", "k3"):
        values = kl_estimate(policy, reference, estimator)  # type: ignore[arg-type]
        assert float((policy.exp() * values).sum()) == pytest.approx(exact)
    assert bool((kl_estimate(policy, reference, "k3") >= 0).all())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # with a positive advantage, a ratio above 1.2 is clipped
        (1.5, -2.0, 3.0, False),  # with a negative advantage, a ratio above 1 is not clipped
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),
    ],
)
def test_policy_loss_and_its_gradient_are_clipped(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    new = fp64(math.log(ratio)).requires_grad_()
    result, was_clipped = policy_loss(new, fp64(0.0), fp64(advantage), 0.2)
    assert result.tolist() == pytest.approx([loss])
    assert was_clipped.tolist() == [clipped]
    (gradient,) = torch.autograd.grad(result.sum(), new)
    assert gradient.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [(1.0, 1.0, 3.0, 2.0, False), (2.0, 1.0, 3.0, 0.5 * 1.8**2, True), (0.0, 1.0, 3.0, 4.5, False)],
)
def test_value_loss_is_clipped(value: float, old: float, target: float, loss: float, clipped: bool) -> None:
    result, was_clipped = value_loss(fp64(value), fp64(old), fp64(target), 0.2)
    assert float(result) == pytest.approx(loss)
    assert bool(was_clipped) == clipped
    assert float(value_loss(fp64(value), fp64(old), fp64(target), None)[0]) == pytest.approx((value - target) ** 2 / 2)


def test_explained_variance_is_1_for_perfect_and_0_for_constant_values() -> None:
    target = fp64(1, 2, 3, 4)
    assert float(explained_variance(target, target)) == 1
    assert float(explained_variance(fp64(2.5, 2.5, 2.5, 2.5), target)) == pytest.approx(0)
    assert float(explained_variance(-target, target)) == pytest.approx(-3)


def test_whitened_values_have_mean_0_and_variance_1() -> None:
    result = whiten(fp64(1, 2, 3, 6))
    assert float(result.mean()) == pytest.approx(0)
    assert float(result.square().mean()) == pytest.approx(1)
    assert whiten(fp64(4, 4)).tolist() == [0, 0]
    assert whiten(fp64(4)).tolist() == [0]


def test_the_kl_coefficient_moves_towards_the_target() -> None:
    """The change is proportional to the relative error, which is clipped to 20 % (Ziegler et al.)."""
    assert adapt_kl_coefficient(0.1, kl=6.6, target=6.0, responses=100, horizon=1000) == pytest.approx(
        0.1 * (1 + 0.1 * 0.1)
    )
    assert adapt_kl_coefficient(0.1, kl=60.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapt_kl_coefficient(0.1, kl=0.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 0.98)
    assert adapt_kl_coefficient(0.1, kl=0.0, target=6.0, responses=6000, horizon=1) == pytest.approx(
        0.08
    )  # at most -20 %, however many responses
