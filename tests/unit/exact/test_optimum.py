"""The closed form on spaces where everything can be added up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.exact.optimum import ipo_optimum, optimal_policy, representative, tilt, value_of
from preftune.exact.worlds import World, bradley_terry, flipped, kl
from preftune.formulas import implicit_reward


def tables(seed: int, prompts: int = 2, responses: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    reward = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, -1), reward


@given(st.integers(0, 500), st.floats(0.05, 5))
def test_nothing_beats_the_optimum(seed: int, beta: float) -> None:
    """pi* is worth beta log Z, and every other policy less by exactly beta KL(policy || pi*)."""
    log_ref, reward = tables(seed)
    log_pi, log_z = optimal_policy(log_ref, reward, beta)
    assert torch.allclose(log_pi.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(value_of(log_pi, log_ref, reward, beta).objective, beta * log_z)
    other = tables(seed + 1)[0]
    lost = beta * log_z - value_of(other, log_ref, reward, beta).objective
    assert torch.allclose(lost, beta * kl(other, log_pi))
    assert bool((lost > 0).all())


@given(st.integers(0, 500), st.floats(0.05, 5))
def test_rewards_of_one_class(seed: int, beta: float) -> None:
    """A number for each prompt changes neither optimum nor preferences, and the class has one implicit reward."""
    log_ref, reward = tables(seed)
    shifted = reward + torch.tensor([[3.0], [-7.0]], dtype=torch.float64)
    log_pi = optimal_policy(log_ref, reward, beta)[0]
    assert torch.allclose(log_pi, optimal_policy(log_ref, shifted, beta)[0])
    assert torch.allclose(bradley_terry(reward), bradley_terry(shifted))
    one = representative(log_ref, reward, beta)
    assert torch.allclose(one, representative(log_ref, shifted, beta))
    assert torch.allclose(one, implicit_reward(log_pi, log_ref, beta))
    assert torch.allclose(optimal_policy(log_ref, one, beta)[1], torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_two_responses_by_hand() -> None:
    log_ref = torch.log(torch.tensor([[0.8, 0.2]], dtype=torch.float64))
    log_pi, log_z = optimal_policy(log_ref, torch.tensor([[0.0, 1.0]], dtype=torch.float64), beta=0.5)
    z = 0.8 + 0.2 * math.e**2
    assert log_pi.exp()[0].tolist() == pytest.approx([0.8 / z, 0.2 * math.e**2 / z])
    assert float(log_z) == pytest.approx(math.log(z))


def test_importance_weights_find_the_optimum() -> None:
    """From samples of the reference: reward and KL near the exact ones, and fewer effective samples at smaller beta."""
    log_ref, reward = tables(0, prompts=1, responses=20)
    draws = torch.multinomial(log_ref.exp()[0], 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    effective = []
    for beta in (2.0, 1.0, 0.5):
        exact = value_of(optimal_policy(log_ref, reward, beta)[0], log_ref, reward, beta)
        found = tilt(reward[0, draws][None], beta)
        assert found.reward == pytest.approx(float(exact.reward), abs=0.02)
        assert found.kl == pytest.approx(float(exact.kl), abs=0.02)
        effective.append(found.effective)
    assert 200_000 > effective[0] > effective[1] > effective[2] > 1


def test_ipo_is_the_least_squares_solution() -> None:
    """No other log-ratios have a smaller population loss; two responses by hand."""
    log_mu = torch.log(torch.tensor([[0.3, 0.7]], dtype=torch.float64))
    preference = torch.tensor([[[0.5, 0.9], [0.1, 0.5]]], dtype=torch.float64)
    log_pi = ipo_optimum(log_mu, log_mu, preference, beta=0.4)
    h = (log_pi - log_mu)[0, 0] - (log_pi - log_mu)[0, 1]
    assert float(h) == pytest.approx((2 * 0.9 - 1) / (2 * 0.4))


def test_a_world_lists_all_that_can_be_said() -> None:
    world = World(3, eos=0, length=3, prompts=((1,), (2, 1)))
    responses = world.responses
    assert len(responses) == len(set(responses)) == 1 + 2 + 4 + 8
    assert all((r[-1] == 0) == (len(r) < 3 or r[-1] == 0) for r in responses)
    uniform = sum((1 / 3) ** len(r) for r in responses)
    assert uniform == pytest.approx(1)


def test_population_weights() -> None:
    """A pair's weight is how often it is drawn; hard labels split it by its probability."""
    world = World(2, eos=0, length=2, prompts=((1,),))
    log_mu = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))
    preference = flipped(bradley_terry(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)), 0.1)
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
