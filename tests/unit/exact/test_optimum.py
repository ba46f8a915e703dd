"""Closed-form optima on problems whose responses can all be enumerated."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.exact_worlds import World, bradley_terry, flip_preferences, ipo_optimum, kl, normalised_reward, value_of

from preftune.exact.optimum import estimate_optimum, optimal_policy
from preftune.formulas import implicit_reward


def tables(seed: int, prompts: int = 2, responses: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    reward = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, -1), reward


@given(st.integers(0, 500), st.floats(0.05, 5))
def test_no_policy_has_a_higher_objective_than_the_optimum(seed: int, beta: float) -> None:
    """The objective of pi* is beta log Z; that of any other policy is lower by beta KL(policy || pi*)."""
    log_ref, reward = tables(seed)
    log_pi, log_z = optimal_policy(log_ref, reward, beta)
    assert torch.allclose(log_pi.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(value_of(log_pi, log_ref, reward, beta).objective, beta * log_z)
    other = tables(seed + 1)[0]
    difference = beta * log_z - value_of(other, log_ref, reward, beta).objective
    assert torch.allclose(difference, beta * kl(other, log_pi))
    assert bool((difference > 0).all())


@given(st.integers(0, 500), st.floats(0.05, 5))
def test_rewards_that_differ_by_a_constant_per_prompt_are_equivalent(seed: int, beta: float) -> None:
    """They have the same optimum, the same preferences and the same normalised reward."""
    log_ref, reward = tables(seed)
    shifted = reward + torch.tensor([[3.0], [-7.0]], dtype=torch.float64)
    log_pi = optimal_policy(log_ref, reward, beta)[0]
    assert torch.allclose(log_pi, optimal_policy(log_ref, shifted, beta)[0])
    assert torch.allclose(bradley_terry(reward), bradley_terry(shifted))
    normalised = normalised_reward(log_ref, reward, beta)
    assert torch.allclose(normalised, normalised_reward(log_ref, shifted, beta))
    assert torch.allclose(normalised, implicit_reward(log_pi, log_ref, beta))
    assert torch.allclose(optimal_policy(log_ref, normalised, beta)[1], torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_the_optimum_of_two_responses_equals_the_hand_computed_one() -> None:
    log_ref = torch.log(torch.tensor([[0.8, 0.2]], dtype=torch.float64))
    log_pi, log_z = optimal_policy(log_ref, torch.tensor([[0.0, 1.0]], dtype=torch.float64), beta=0.5)
    z = 0.8 + 0.2 * math.e**2
    assert log_pi.exp()[0].tolist() == pytest.approx([0.8 / z, 0.2 * math.e**2 / z])
    assert float(log_z) == pytest.approx(math.log(z))


def test_the_estimate_from_samples_is_close_to_the_exact_optimum() -> None:
    """A smaller beta leaves fewer effective samples."""
    log_ref, reward = tables(0, prompts=1, responses=20)
    draws = torch.multinomial(log_ref.exp()[0], 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    effective = []
    for beta in (2.0, 1.0, 0.5):
        exact = value_of(optimal_policy(log_ref, reward, beta)[0], log_ref, reward, beta)
        estimate = estimate_optimum(reward[0, draws][None], beta)
        assert estimate.reward == pytest.approx(float(exact.reward), abs=0.02)
        assert estimate.kl == pytest.approx(float(exact.kl), abs=0.02)
        effective.append(estimate.effective)
    assert 200_000 > effective[0] > effective[1] > effective[2] > 1


def test_the_ipo_optimum_equals_the_hand_computed_margin() -> None:
    """For two responses, the margin that minimises the population loss is (2p - 1) / (2 beta)."""
    log_mu = torch.log(torch.tensor([[0.3, 0.7]], dtype=torch.float64))
    preference = torch.tensor([[[0.5, 0.9], [0.1, 0.5]]], dtype=torch.float64)
    log_pi = ipo_optimum(log_mu, log_mu, preference, beta=0.4)
    h = (log_pi - log_mu)[0, 0] - (log_pi - log_mu)[0, 1]
    assert float(h) == pytest.approx((2 * 0.9 - 1) / (2 * 0.4))


def test_a_world_enumerates_all_responses() -> None:
    world = World(3, eos=0, length=3, prompts=((1,), (2, 1)))
    responses = world.responses
    assert len(responses) == len(set(responses)) == 1 + 2 + 4 + 8
    assert all((r[-1] == 0) == (len(r) < 3 or r[-1] == 0) for r in responses)
    uniform = sum((1 / 3) ** len(r) for r in responses)
    assert uniform == pytest.approx(1)


def test_population_weights_are_proportional_to_the_probability_of_a_pair() -> None:
    """Hard labels split the weight of a pair by its preference probability."""
    world = World(2, eos=0, length=2, prompts=((1,),))
    log_mu = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))
    preference = flip_preferences(bradley_terry(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)), 0.1)
    (soft,) = world.population(log_mu, preference)
    (hard,) = world.population(log_mu, preference, hard=True)
    assert sum(j.weight for j in soft.judgements) == pytest.approx(3)
    assert sum(j.weight for j in hard.judgements) == pytest.approx(3)
    first = soft.judgements[0]
    assert (first.better, first.worse) == (1, 0)
    assert first.weight == pytest.approx(3 * 0.15 / (0.15 + 0.10 + 0.06))
    assert first.probability == pytest.approx(
        0.9 * torch.sigmoid(torch.tensor(1.0)).item() + 0.1 * (1 - torch.sigmoid(torch.tensor(1.0)).item())
    )
