"""PPO's arithmetic against values worked out by hand and against loops that spell the formulas out."""

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


def test_advantages_by_hand() -> None:
    """Two responses, gamma 0.9, lambda 0.5, worked out on paper."""
    reward, value = fp64(0.0, 0.0, 1.0, 2.0), fp64(0.5, 0.4, 0.2, 1.5)
    found = advantages(reward, value, torch.tensor([3, 1]), gamma=0.9, lam=0.5)
    last = 1.0 - 0.2
    middle = (0.9 * 0.2 - 0.4) + 0.45 * last
    first = (0.9 * 0.4 - 0.5) + 0.45 * middle
    assert found.advantage_N.tolist() == pytest.approx([first, middle, last, 0.5])
    assert first == pytest.approx(-0.077)
    assert found.return_N.tolist() == pytest.approx([0.5 + first, 0.4 + middle, 1.0, 2.0])


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_advantages_are_the_sum_of_discounted_surprises(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, summed for every token from its definition."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    reward = torch.randn(n, generator=generator, dtype=torch.float64)
    value = torch.randn(n, generator=generator, dtype=torch.float64)
    found = advantages(reward, value, torch.tensor(lengths), gamma, lam)
    at = 0
    for length in lengths:
        r, v = reward[at : at + length].tolist(), [*value[at : at + length].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            assert float(found.advantage_N[at + t]) == pytest.approx(expected, abs=1e-9)
            assert float(found.return_N[at + t]) == pytest.approx(expected + v[t], abs=1e-9)
        at += length


def test_with_lambda_1_the_returns_are_the_rewards_to_come() -> None:
    found = advantages(fp64(1, 2, 3), fp64(9, -4, 7), torch.tensor([3]), gamma=1.0, lam=1.0)
    assert found.return_N.tolist() == [6, 5, 3]


def test_the_score_is_given_at_the_last_token() -> None:
    found = token_rewards(fp64(5, 7), fp64(0.1, 0.2, 0.3), 2.0, torch.tensor([2, 1]))
    assert found.tolist() == pytest.approx([-0.2, 5 - 0.4, 7 - 0.6])


def test_estimators_of_the_kl() -> None:
    d = math.log(0.6 / 0.5)
    policy, reference = fp64(math.log(0.6)), fp64(math.log(0.5))
    assert float(kl_estimate(policy, reference, "k1")) == pytest.approx(d)
    assert float(kl_estimate(policy, reference, "k2")) == pytest.approx(d * d / 2)
    assert float(kl_estimate(policy, reference, "k3")) == pytest.approx(0.5 / 0.6 - 1 + d)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    """Expectations over the policy, exactly, on a distribution of five tokens."""
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
        (1.5, 2.0, -2.4, True),  # a gain beyond 1.2 counts no more
        (1.5, -2.0, 3.0, False),  # a loss counts in full
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),
    ],
)
def test_the_clipped_objective(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    new = fp64(math.log(ratio)).requires_grad_()
    found, was = policy_loss(new, fp64(0.0), fp64(advantage), 0.2)
    assert found.tolist() == pytest.approx([loss])
    assert was.tolist() == [clipped]
    (gradient,) = torch.autograd.grad(found.sum(), new)
    assert gradient.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [(1.0, 1.0, 3.0, 2.0, False), (2.0, 1.0, 3.0, 0.5 * 1.8**2, True), (0.0, 1.0, 3.0, 4.5, False)],
)
def test_the_clipped_value(value: float, old: float, target: float, loss: float, clipped: bool) -> None:
    found, was = value_loss(fp64(value), fp64(old), fp64(target), 0.2)
    assert float(found) == pytest.approx(loss)
    assert bool(was) == clipped
    assert float(value_loss(fp64(value), fp64(old), fp64(target), None)[0]) == pytest.approx((value - target) ** 2 / 2)


def test_explained_variance() -> None:
    target = fp64(1, 2, 3, 4)
    assert float(explained_variance(target, target)) == 1
    assert float(explained_variance(fp64(2.5, 2.5, 2.5, 2.5), target)) == pytest.approx(0)
    assert float(explained_variance(-target, target)) == pytest.approx(-3)


def test_whitening() -> None:
    found = whiten(fp64(1, 2, 3, 6))
    assert float(found.mean()) == pytest.approx(0)
    assert float(found.square().mean()) == pytest.approx(1)
    assert whiten(fp64(4, 4)).tolist() == [0, 0]
    assert whiten(fp64(4)).tolist() == [0]


def test_the_coefficient_follows_the_kl() -> None:
    """Ziegler et al.: proportional to the relative error, cut at 20 %."""
    assert adapt_kl_coefficient(0.1, kl=6.6, target=6.0, responses=100, horizon=1000) == pytest.approx(
        0.1 * (1 + 0.1 * 0.1)
    )
    assert adapt_kl_coefficient(0.1, kl=60.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapt_kl_coefficient(0.1, kl=0.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 0.98)
    assert adapt_kl_coefficient(0.1, kl=0.0, target=6.0, responses=6000, horizon=1) == pytest.approx(
        0.08
    )  # never below 0
