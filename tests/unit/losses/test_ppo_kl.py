"""The gradient of the KL penalty, compared with exact expectations over all responses of a small world in fp64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exact_worlds import World
from torch import Tensor

from preftune.losses.ppo import advantages, kl_estimate, kl_loss, policy_loss, token_rewards

WORLD = World(3, eos=0, length=3, prompts=((1,),))
RESPONSES = WORLD.responses
LENGTH = torch.tensor([len(r) for r in RESPONSES])
STATES = {state: i for i, state in enumerate(sorted({r[:t] for r in RESPONSES for t in range(len(r))}))}
STATE_N = torch.tensor([STATES[r[:t]] for r in RESPONSES for t in range(len(r))])
TOKEN_N = torch.tensor([token for r in RESPONSES for token in r])
OWNER_N = torch.repeat_interleave(torch.arange(len(RESPONSES)), LENGTH)

Estimator = Literal["k1", "k2", "k3"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_logps(logits: Tensor) -> Tensor:
    """Log-prob of every token of every response, under a table with one distribution per state."""
    return torch.log_softmax(logits, -1)[STATE_N, TOKEN_N]


def by_response(values_N: Tensor) -> Tensor:
    return values_N.new_zeros(len(RESPONSES)).index_add(0, OWNER_N, values_N)


def true_gradient(logits: Tensor, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Gradient of -(E[r] - beta KL(pi || ref)), from its definition."""
    logits = logits.clone().requires_grad_()
    log_pi, log_ref = by_response(token_logps(logits)), by_response(token_logps(reference))
    value = (log_pi.exp() * (reward - beta * (log_pi - log_ref))).sum()
    return torch.autograd.grad(-value, logits)[0]


def ppo_gradient(logits: Tensor, reference: Tensor, reward: Tensor, beta: float, estimator: Estimator) -> Tensor:
    """Expected gradient of the first update, computed as in methods.rollouts and methods.ppo_loop."""
    old_N, reference_N = token_logps(logits), token_logps(reference)
    kl_N = kl_estimate(old_N, reference_N, "k1")
    value_N = normal(99, len(STATES))[STATE_N]  # arbitrary: a baseline does not change the expected gradient
    actual = advantages(token_rewards(reward, kl_N, beta, LENGTH), value_N, LENGTH, gamma=1.0, lam=1.0)
    correction = 0.0 if estimator == "k1" else beta
    logits = logits.clone().requires_grad_()
    now_N = token_logps(logits)
    loss_N, _ = policy_loss(now_N, old_N, actual.advantage_N + correction * kl_N, 0.2)
    if estimator != "k1":
        loss_N = loss_N + beta * kl_loss(now_N, old_N, reference_N, estimator)
    probability = by_response(old_N).exp()
    return torch.autograd.grad((probability[OWNER_N] * loss_N).sum(), logits)[0]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 5), st.sampled_from(["k1", "k2", "k3"]))
def test_the_expected_gradient_is_that_of_reward_minus_beta_kl(seed: int, beta: float, estimator: Estimator) -> None:
    """For all three estimators."""
    logits, reference = normal(seed, len(STATES), 3), normal(seed + 1, len(STATES), 3)
    reward = normal(seed + 2, len(RESPONSES))
    expected = true_gradient(logits, reference, reward, beta)
    actual = ppo_gradient(logits, reference, reward, beta, estimator)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["k2", "k3"]))
def test_the_loss_term_has_the_gradient_of_the_kl_if_another_policy_sampled(seed: int, estimator: Estimator) -> None:
    """After an update, the policy differs from the one that sampled. The ratio corrects for this."""
    logits, old, reference = (torch.log_softmax(normal(seed + i, 6), 0) for i in range(3))
    logits.requires_grad_()
    policy = torch.log_softmax(logits, 0)
    (expected,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    policy = torch.log_softmax(logits, 0)
    (actual,) = torch.autograd.grad((old.exp() * kl_loss(policy, old, reference, estimator)).sum(), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_as_token_rewards_do_not_have_the_gradient_of_the_kl(estimator: Estimator) -> None:
    """This is why they are loss terms: E[f(d) grad log pi] is the gradient of the KL only for f(d) = d."""
    logits, reference = normal(0, 6).requires_grad_(), torch.log_softmax(normal(1, 6), 0)
    policy = torch.log_softmax(logits, 0)
    (expected,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    penalty = kl_estimate(policy, reference, estimator).detach()
    (actual,) = torch.autograd.grad((policy.exp().detach() * penalty * policy).sum(), logits)
    assert float((actual - expected).abs().max()) > 0.05


def test_k3_without_its_ratio_has_the_gradient_of_the_reverse_kl() -> None:
    logits, reference = normal(0, 6).requires_grad_(), torch.log_softmax(normal(1, 6), 0)
    policy = torch.log_softmax(logits, 0)
    (other,) = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits, retain_graph=True)
    (actual,) = torch.autograd.grad((policy.exp().detach() * kl_estimate(policy, reference, "k3")).sum(), logits)
    torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)


def test_the_loss_term_equals_the_hand_computed_value() -> None:
    """ratio 0.6 / 0.4, d = ln(0.6 / 0.5)."""
    policy, old, reference = (torch.tensor([p], dtype=torch.float64).log() for p in (0.6, 0.4, 0.5))
    d = float(policy - reference)
    assert float(kl_loss(policy, old, reference, "k2")) == pytest.approx(1.5 * d * d / 2)
    assert float(kl_loss(policy, old, reference, "k3")) == pytest.approx(1.5 * (0.5 / 0.6 - 1 + d))


def test_the_loss_term_is_finite_for_a_token_that_became_very_unlikely() -> None:
    policy = torch.tensor([-500.0], requires_grad=True)
    for estimator in ("k2", "k3"):
        value = kl_loss(policy, torch.tensor([-1.0]), torch.tensor([-0.5]), estimator)
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(gradient).all())
