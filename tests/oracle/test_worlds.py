"""Transformers trained by the real training loop, compared with optimal policies in closed form.

The training data are the judgements of all pairs, weighted by their probability. The optimum of each loss is then
known, and training must reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.exact_worlds import bradley_terry, flip_preferences, ipo_optimum, kl
from tests.worlds import WORLD, Silent, make_world_model, table, tune
from torch import Tensor

from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig
from preftune.config.schema import LossTerm, ModelConfig, OptimConfig
from preftune.data.layout import Budget
from preftune.data.prompts import Prompt, Prompts
from preftune.data.steps import training_steps
from preftune.exact.optimum import optimal_policy
from preftune.methods.objective import bind_objective
from preftune.methods.ppo_loop import optimise
from preftune.methods.rollouts import Critic, PPOModels
from preftune.model.logprobs import Scorer
from preftune.model.reference import Frozen
from preftune.rewards.reward import PromptResponse
from preftune.train.optim import Weights, build_optimizer

NOISE = 0.2


def rewards(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(WORLD.prompts), len(WORLD.responses), generator=generator, dtype=torch.float64)


def train(
    name: str, preference: Tensor, hard: bool = False, steps: int = 300, lr: float = 5e-3, **parameters: Any
) -> tuple[Tensor, Tensor]:
    """Train with this loss on pairs from the reference. Returns the tables (log reference, log policy)."""
    model = make_world_model()
    log_ref = table(Scorer.of(model), WORLD)
    objective = bind_objective([LossTerm(name=name, parameters=parameters)])
    groups = WORLD.population(log_ref, preference, hard)
    return log_ref, table(tune(model, objective, groups, steps, lr), WORLD)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_dpo_reaches_the_optimal_policy(beta: float) -> None:
    reward = rewards()
    log_ref, log_pi = train("sigmoid", bradley_terry(reward), beta=beta)
    optimum, _ = optimal_policy(log_ref, reward, beta)
    assert float(kl(log_ref, optimum).max()) > 0.02, "the reference must differ from the optimum"
    assert float(kl(log_pi, optimum).max()) < 1e-3
    assert float((log_pi - optimum).abs().max()) < 0.5  # for every response


@pytest.mark.parametrize("mistake", ["sign", "beta"])
def test_flipped_judgements_or_a_wrong_beta_miss_the_optimum(mistake: str) -> None:
    """The tolerance of the other tests is small enough to detect such mistakes."""
    reward = rewards()
    preference = bradley_terry(-reward if mistake == "sign" else reward)
    log_ref, log_pi = train("sigmoid", preference, beta=1.0 if mistake == "sign" else 0.5)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    assert float(kl(log_pi, optimum).max()) > 0.05


def test_robust_dpo_reaches_the_optimum_with_flipped_labels() -> None:
    """With 20 % flipped judgements, robust DPO reaches pi* and plain DPO does not."""
    reward = rewards()
    noisy = flip_preferences(bradley_terry(reward), NOISE)
    log_ref, robust = train("robust", noisy, hard=True, beta=1.0, label_smoothing=NOISE)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    assert float(kl(robust, optimum).max()) < 1e-3
    _, plain = train("sigmoid", noisy, beta=1.0)
    assert float(kl(plain, optimum).max()) > 0.05


def test_summed_ipo_reaches_its_optimum_with_flipped_labels() -> None:
    """The optimum is ref exp(P(y beats ref) / beta) / Z, with the probabilities of the noisy judgements."""
    noisy = flip_preferences(bradley_terry(rewards()), NOISE)
    log_ref, log_pi = train("ipo", noisy, beta=0.3, average=False)
    optimum = ipo_optimum(log_ref, log_ref, noisy, 0.3)
    assert float(kl(log_ref, optimum).max()) > 0.02
    assert float(kl(log_pi, optimum).max()) < 1e-3


def test_conservative_dpo_reaches_its_optimum() -> None:
    """For smoothed hard labels. The optimum is computed in fp64, see `smoothed_optimum`."""
    certain = (bradley_terry(rewards()) > 0.5).double()
    log_ref, log_pi = train("sigmoid", certain, beta=1.0, label_smoothing=NOISE)
    smoothed = certain * (1 - NOISE) + (1 - certain) * NOISE
    optimum = torch.stack([smoothed_optimum(r, p) for r, p in zip(log_ref, smoothed, strict=True)])
    assert float(kl(log_ref, optimum).max()) > 0.1
    assert float(kl(log_pi, optimum).max()) < 1e-3


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_ppo_reaches_the_optimum_in_more_updates_than_dpo(estimator: Literal["k1", "k2", "k3"]) -> None:
    """PPO with the true reward and kl_coef = beta has the same optimum as DPO with the preferences.

    After 160 updates with 40,960 sampled responses, it is farther from the optimum than DPO after 160 updates.
    """
    reward = rewards()
    ppo = PPOParameters(
        kl_coef=1.0, kl_estimator=estimator, lam=1.0, epochs=2, minibatches=1, whiten_advantages=False, value_clip=None
    )
    log_ref, log_pi = train_by_ppo(reward, ppo)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    distance = kl(log_pi, optimum)
    assert float(kl(log_ref, optimum).max()) > 0.3
    assert float(distance.max()) < 0.01
    _, by_dpo = train("sigmoid", bradley_terry(reward), steps=160, lr=1e-2, beta=1.0)
    assert float(kl(by_dpo, optimum).max()) < float(distance.max())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_whitened_advantages_with_the_kl_as_a_loss_term_have_the_same_optimum(
    estimator: Literal["k2", "k3"],
) -> None:
    """Whitening must scale the KL term like the advantages, because the optimum depends on their ratio."""
    reward = rewards()
    ppo = PPOParameters(
        kl_coef=0.5, kl_estimator=estimator, lam=1.0, epochs=2, minibatches=1, whiten_advantages=True, value_clip=None
    )
    log_ref, log_pi = train_by_ppo(reward, ppo)
    optimum, _ = optimal_policy(log_ref, reward, 0.5)
    assert float(kl(log_ref, optimum).max()) > 2
    assert float(kl(log_pi, optimum).max()) < 0.1


def train_by_ppo(reward: Tensor, settings: PPOParameters) -> tuple[Tensor, Tensor]:
    """Train for 60 steps of PPO with these rewards. Returns the tables (log reference, log policy)."""
    model = make_world_model()
    log_ref = table(Scorer.of(model), WORLD)
    reward_of = {
        (prompt, response): float(reward[p, r])
        for p, prompt in enumerate(WORLD.prompts)
        for r, response in enumerate(WORLD.responses)
    }

    def judge(answers: Sequence[PromptResponse]) -> list[float]:
        return [reward_of[world_key(a)] for a in answers]

    scorer = Scorer.of(model)
    config = PPOConfig(
        model=ModelConfig(path="world"),
        data=PromptConfig(train="world"),
        reward="world",
        rollout=RolloutConfig(prompts=2, responses=256, max_new_tokens=WORLD.length),
        ppo=settings,
        optim=OptimConfig(lr=1e-2, schedule="linear", warmup=0),
        out="world",
    )
    critic = Critic(None, torch.nn.Linear(48, 1))
    torch.nn.init.zeros_(critic.module.weight)
    models = PPOModels(scorer, Frozen.copy_of(model), judge, critic, Letters())
    prompts = [
        Prompt("".join(map(str, p)), np.array(p, dtype=np.int32), f"world:{i}") for i, p in enumerate(WORLD.prompts)
    ]
    weights = Weights(torch.nn.ModuleDict({"policy": model, "value": critic.module}))
    optimizer = build_optimizer(weights.masters, "adamw", 1e-2, 0.0)
    steps = list(training_steps([1, 1], 2, 0, 80))
    budget = Budget("rows", 1 << 20)
    for _ in optimise(models, Prompts(prompts, []), steps, config, budget, weights, optimizer, Silent()):
        pass
    return log_ref, table(scorer, WORLD)


def world_key(answer: PromptResponse) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt, response) in token ids."""
    ids = [int(letter) for letter in answer.response]
    return tuple(map(int, str(answer.prompt))), (*ids, 0) if answer.ended else tuple(ids)


class Letters:
    """A tokenizer that decodes ids to digits."""

    eos_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(str(i) for i in ids if i)


def smoothed_optimum(log_ref_R: Tensor, preference_RR: Tensor) -> Tensor:
    """Return log pi of the scores that minimise the cross-entropy of all pairs at beta 1, by LBFGS."""
    mu = log_ref_R.exp()
    weight_RR = mu[:, None] * mu[None, :] * (1 - torch.eye(len(mu), dtype=torch.float64))
    score_R = torch.zeros_like(log_ref_R, requires_grad=True)
    solver = torch.optim.LBFGS(
        [score_R], max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        z_RR = score_R[:, None] - score_R[None, :]
        entropy = -preference_RR * torch.nn.functional.logsigmoid(z_RR)
        total = (weight_RR * entropy).sum()
        total.backward()
        return total

    solver.step(loss)
    return torch.log_softmax(log_ref_R + score_R.detach(), -1)
