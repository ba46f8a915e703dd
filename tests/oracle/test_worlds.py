"""Real transformers, trained by the real loop on population preferences, against optima in closed form.

With infinitely many judged pairs the minimum of each loss is known. A transformer that can represent it must get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.worlds import WORLD, Silent, make_world_model, table, tune
from torch import Tensor

from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig
from preftune.config.schema import LossTerm, ModelConfig, OptimConfig
from preftune.data.layout import Budget
from preftune.data.order import training_steps
from preftune.data.prompts import Prompt, Prompts
from preftune.exact.optimum import ipo_optimum, optimal_policy
from preftune.exact.worlds import bradley_terry, flipped, kl
from preftune.methods.objective import bind_objective
from preftune.methods.ppo_loop import optimise
from preftune.methods.rollouts import Actors, Critic
from preftune.model.logprobs import Scorer
from preftune.model.reference import Frozen
from preftune.rewards.reward import PromptResponse
from preftune.train.optim import Weights, build_optimizer

NOISE = 0.2


def rewards(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(WORLD.prompts), len(WORLD.responses), generator=generator, dtype=torch.float64)


def tuned(
    name: str, preference: Tensor, hard: bool = False, steps: int = 300, lr: float = 5e-3, **parameters: Any
) -> tuple[Tensor, Tensor]:
    """(log reference, log policy) tables after training with this loss; pairs are drawn from the reference."""
    model = make_world_model()
    log_ref = table(Scorer.of(model), WORLD)
    objective = bind_objective([LossTerm(name=name, parameters=parameters)])
    groups = WORLD.population(log_ref, preference, hard)
    return log_ref, table(tune(model, objective, groups, steps, lr), WORLD)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_dpo_finds_the_optimal_policy(beta: float) -> None:
    reward = rewards()
    log_ref, log_pi = tuned("sigmoid", bradley_terry(reward), beta=beta)
    optimum, _ = optimal_policy(log_ref, reward, beta)
    assert float(kl(log_ref, optimum).max()) > 0.02, "the world is no test if the reference is the optimum"
    assert float(kl(log_pi, optimum).max()) < 1e-3
    assert float((log_pi - optimum).abs().max()) < 0.5  # response by response


@pytest.mark.parametrize("mistake", ["sign", "beta"])
def test_a_mistake_is_far_from_the_optimum(mistake: str) -> None:
    """The yardstick sees judgements turned round, and half of the beta."""
    reward = rewards()
    preference = bradley_terry(-reward if mistake == "sign" else reward)
    log_ref, log_pi = tuned("sigmoid", preference, beta=1.0 if mistake == "sign" else 0.5)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    assert float(kl(log_pi, optimum).max()) > 0.05


def test_robust_dpo_sees_through_flipped_labels() -> None:
    """A fifth of the judgements turned round: robust DPO still finds pi*, plain DPO does not."""
    reward = rewards()
    noisy = flipped(bradley_terry(reward), NOISE)
    log_ref, robust = tuned("robust", noisy, hard=True, beta=1.0, label_smoothing=NOISE)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    assert float(kl(robust, optimum).max()) < 1e-3
    _, plain = tuned("sigmoid", noisy, beta=1.0)
    assert float(kl(plain, optimum).max()) > 0.05


def test_summed_ipo_finds_its_own_optimum_under_noise() -> None:
    """ref exp(P(y beats ref) / beta) / Z, with the noisy judgements' own probabilities."""
    noisy = flipped(bradley_terry(rewards()), NOISE)
    log_ref, log_pi = tuned("ipo", noisy, beta=0.3, average=False)
    optimum = ipo_optimum(log_ref, log_ref, noisy, 0.3)
    assert float(kl(log_ref, optimum).max()) > 0.02
    assert float(kl(log_pi, optimum).max()) < 1e-3


def test_conservative_dpo_finds_its_own_optimum() -> None:
    """Certain labels, smoothed: the minimum over tables of log-ratios, found in fp64, is its optimum."""
    certain = (bradley_terry(rewards()) > 0.5).double()
    log_ref, log_pi = tuned("sigmoid", certain, beta=1.0, label_smoothing=NOISE)
    believed = certain * (1 - NOISE) + (1 - certain) * NOISE
    optimum = torch.stack([smoothed_optimum(r, p) for r, p in zip(log_ref, believed, strict=True)])
    assert float(kl(log_ref, optimum).max()) > 0.1
    assert float(kl(log_pi, optimum).max()) < 1e-3


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_ppo_reaches_the_optimum_after_more_updates_than_dpo(estimator: Literal["k1", "k2", "k3"]) -> None:
    """PPO with the true reward has the optimum that DPO has with its preferences; kl_coef is beta.

    After 120 updates, for which it had to sample 30,720 responses, it is farther from it than DPO after as many.
    """
    reward = rewards()
    ppo = PPOParameters(
        kl_coef=1.0, kl_estimator=estimator, lam=1.0, epochs=2, minibatches=1, whiten_advantages=False, value_clip=None
    )
    log_ref, log_pi = tuned_by_ppo(reward, ppo)
    optimum, _ = optimal_policy(log_ref, reward, 1.0)
    after = kl(log_pi, optimum)
    assert float(kl(log_ref, optimum).max()) > 0.3
    assert float(after.mean()) < 0.01
    assert float(after.max()) < 0.02
    _, by_dpo = tuned("sigmoid", bradley_terry(reward), steps=120, lr=1e-2, beta=1.0)
    assert float(kl(by_dpo, optimum).max()) < float(after.max())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_as_a_loss_term_has_the_optimum_of_beta_with_whitened_advantages(
    estimator: Literal["k2", "k3"],
) -> None:
    """Whitening changes the scale of the advantages and of the KL term alike, or the optimum would be another one."""
    reward = rewards()
    ppo = PPOParameters(
        kl_coef=0.5, kl_estimator=estimator, lam=1.0, epochs=2, minibatches=1, whiten_advantages=True, value_clip=None
    )
    log_ref, log_pi = tuned_by_ppo(reward, ppo)
    optimum, _ = optimal_policy(log_ref, reward, 0.5)
    assert float(kl(log_ref, optimum).max()) > 2
    assert float(kl(log_pi, optimum).max()) < 0.1


def tuned_by_ppo(reward: Tensor, settings: PPOParameters) -> tuple[Tensor, Tensor]:
    """log reference and log policy tables after 60 steps of PPO with these rewards of all responses."""
    model = make_world_model()
    log_ref = table(Scorer.of(model), WORLD)
    known = {
        (prompt, response): float(reward[p, r])
        for p, prompt in enumerate(WORLD.prompts)
        for r, response in enumerate(WORLD.responses)
    }

    def judge(answers: Sequence[PromptResponse]) -> list[float]:
        return [known[world_key(a)] for a in answers]

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
    actors = Actors(scorer, Frozen.copy_of(model), judge, critic, Letters())
    prompts = [
        Prompt("".join(map(str, p)), np.array(p, dtype=np.int32), f"world:{i}") for i, p in enumerate(WORLD.prompts)
    ]
    weights = Weights(torch.nn.ModuleDict({"policy": model, "value": critic.module}))
    optimizer = build_optimizer(weights.masters, "adamw", 1e-2, 0.0)
    steps = list(training_steps([1, 1], 2, 0, 60))
    budget = Budget("rows", 1 << 20)
    for _ in optimise(actors, Prompts(prompts, []), steps, config, budget, weights, optimizer, Silent()):
        pass
    return log_ref, table(scorer, WORLD)


def world_key(answer: PromptResponse) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt, response) in token ids."""
    ids = [int(letter) for letter in answer.response]
    return tuple(map(int, str(answer.prompt))), (*ids, 0) if answer.ended else tuple(ids)


class Letters:
    """A tokenizer whose text is the ids."""

    eos_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(str(i) for i in ids if i)


def smoothed_optimum(log_ref_R: Tensor, believed_RR: Tensor) -> Tensor:
    """log pi of the scores that minimise the cross-entropy of all pairs at beta 1."""
    mu = log_ref_R.exp()
    weight_RR = mu[:, None] * mu[None, :] * (1 - torch.eye(len(mu), dtype=torch.float64))
    score_R = torch.zeros_like(log_ref_R, requires_grad=True)
    solver = torch.optim.LBFGS(
        [score_R], max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        z_RR = score_R[:, None] - score_R[None, :]
        entropy = -believed_RR * torch.nn.functional.logsigmoid(z_RR)
        total = (weight_RR * entropy).sum()
        total.backward()
        return total

    solver.step(loss)
    return torch.log_softmax(log_ref_R + score_R.detach(), -1)
