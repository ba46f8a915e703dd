"""The rollouts of PPO: sample responses, compute their rewards, and estimate the advantage of each token.

Four models take part: the policy samples, the KL to the reference is a penalty, the reward model scores whole
responses, and the value model predicts the return from each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from preftune.config.sampling import PPOParameters, RolloutConfig
from preftune.data.layout import Budget, micro_batches
from preftune.data.prompts import Prompt
from preftune.errors import NumericError
from preftune.losses import ppo
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.logprobs import Scorer, head_input, logps, logps_from_states, sum_responses
from preftune.model.memory import by_group
from preftune.model.reference import Live
from preftune.model.scalar import scalars
from preftune.ranks.group import from_first, world
from preftune.ranks.work import by_rank, slots
from preftune.rewards.reward import Reward, require_rewards, responses_of
from preftune.types import Batch, Logps, TokenGroup

MAX_VALUE_RATIO = 1000.0  # a value this many times as large as the largest reward means that the value model diverged


@dataclass(frozen=True, slots=True)
class Critic:
    """The value model: a separate network, or a linear head on the policy's last hidden states."""

    network: Scorer | None
    head: nn.Linear | None

    @property
    def module(self) -> Any:
        return self.network.model if self.network else self.head


@dataclass(frozen=True, slots=True)
class PPOModels:
    """The models of a PPO run."""

    policy: Scorer
    reference: Live
    reward: Reward
    critic: Critic
    tokenizer: Any

    def policy_and_values(self, batch: Batch) -> tuple[Logps, Tensor]:
        """Return the policy's log-probs and (N,) values, with gradients. A value head shares the policy's pass."""
        if self.critic.network:
            return logps(self.policy, batch), scalars(self.critic.network, batch)
        assert self.critic.head is not None
        states = head_input(self.policy, batch)
        value_N = self.critic.head(states[0].to(self.critic.head.weight.dtype)).squeeze(-1).float()
        return logps_from_states(states, batch), value_N


@dataclass(frozen=True, slots=True)
class RolloutTokens:
    """(N,) values per response token, before the updates of a step; `logp`, `reference`: log-probs of both models."""

    logp: Tensor
    reference: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class Experience:
    """The responses of one step, and their tokens by id(group). `kl_weight`: of the KL as a loss term, 0 for k1."""

    groups: list[TokenGroup]
    tokens: dict[int, RolloutTokens]
    metrics: dict[str, float]
    kl_weight: float

    def tokens_of(self, batch: Batch) -> RolloutTokens:
        """Return the tokens of all groups of a batch."""
        parts = [self.tokens[id(group)] for group in batch.groups]
        names = ("logp", "reference", "value", "advantage", "returns")
        return RolloutTokens(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def sample_responses(models: PPOModels, prompts: Sequence[Prompt], rollout: RolloutConfig, seed: int) -> list[Sampled]:
    """Sample the policy's responses to the prompts."""
    sampling = Sampling(rollout.responses, rollout.max_new_tokens, seed=seed)

    def of_share(part: Sequence[Prompt]) -> list[Sampled]:
        return sample(models.policy.model, models.tokenizer, [p.ids.tolist() for p in part], sampling)

    return by_rank(prompts, lambda prompt: len(prompt.ids) + rollout.max_new_tokens, of_share)


def reward_samples(
    models: PPOModels, prompts: Sequence[Prompt], samples: Sequence[Sampled], rollout: RolloutConfig, when: str
) -> tuple[Tensor, Tensor]:
    """Return (S,) rewards minus the penalty for cut-off responses, and (S,) whether each response ended."""
    responses = responses_of(prompts, samples)
    cut = next((r for r in responses if not r.ended), None)
    if cut and rollout.missing_eos == "stop":
        raise NumericError(
            f"a response did not end within {rollout.max_new_tokens} tokens",
            where=f"{when}, {cut.origin}",
            why=f"rollout.missing_eos=stop ends the run at the first such response: {cut.response!r}",
            fix="raise rollout.max_new_tokens, or set rollout.missing_eos=keep and rollout.missing_eos_penalty",
        )
    ended_S = torch.tensor([r.ended for r in responses])
    # rank 0 alone calls the reward, which may be a server or a function that is not a pure one
    reward_S = torch.from_numpy(from_first(lambda: require_rewards(models.reward, responses, when))).float()
    return reward_S - rollout.missing_eos_penalty * (~ended_S).float(), ended_S


@torch.no_grad()
def collect(
    models: PPOModels,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    settings: PPOParameters,
    coefficient: float,
    budget: Budget,
    seed: int,
    step: int,
) -> Experience:
    """Sample responses, compute their rewards, and estimate advantages. `coefficient` is the weight of the KL.

    Raises the errors of `require_rewards`, and NumericError if the value model has diverged.
    """
    when = f"step {step}"
    samples = sample_responses(models, prompts, rollout, seed)
    score_S, ended_S = reward_samples(models, prompts, samples, rollout, when)
    groups = [replace(s.group, origin=p.origin) for s, p in zip(samples, prompts, strict=True)]
    device = models.policy.device

    def forward(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        batch = batch.to(device)
        policy, value_N = models.policy_and_values(batch)
        return policy.token_N, models.reference.logps(batch).token_N, value_N

    def of_share(part: Sequence[TokenGroup]) -> list[tuple[Tensor, ...]]:
        outputs = by_group(forward, part, partial(micro_batches, budget=budget))
        return outputs if world() == 1 else [tuple(value.cpu() for value in values) for values in outputs]

    outputs = by_rank(groups, slots(budget.layout), of_share)
    policy_N, reference_N, value_N = (torch.cat(parts).to(device) for parts in zip(*outputs, strict=True))
    length_S = torch.tensor([len(r) for g in groups for r in g.response_ids], device=device)
    score_S = score_S.to(device)
    scaled_S = score_S / (score_S.std(correction=0) + 1e-8) if settings.whiten_rewards else score_S
    kl_N = ppo.kl_estimate(policy_N, reference_N, "k1")  # the only estimator with the right gradient as a reward
    reward_N = ppo.token_rewards(scaled_S, kl_N, coefficient, length_S)
    advantage_N, return_N = ppo.advantages(reward_N, value_N, length_S, settings.gamma, settings.lam)
    kl_S, total_S = sum_responses(policy_N - reference_N, length_S), sum_responses(reward_N, length_S)
    _require_bounded(value_N, total_S, length_S, groups, when)
    advantage_N, kl_weight = _split_kl(advantage_N, kl_N, coefficient, settings)
    metrics: dict[str, Any] = {
        "objective/score": score_S.mean(),
        "objective/kl": kl_S.mean(),
        "objective/reward": total_S.mean(),
        "objective/kl_coef": coefficient,
        "policy/entropy": -policy_N.mean(),  # estimated on the sampled tokens
        "value/mean": value_N.mean(),
        "value/explained_variance": ppo.explained_variance(value_N, return_N),
        "returns/mean": return_N.mean(),
        "returns/std": return_N.std(correction=0),
        "responses/tokens": length_S.float().mean(),
        "responses/ended": ended_S.float().mean(),
    }
    sizes = [sum(map(len, group.response_ids)) for group in groups]
    pieces = [torch.split(values, sizes) for values in (policy_N, reference_N, value_N, advantage_N, return_N)]
    tokens = {id(group): RolloutTokens(*parts) for group, *parts in zip(groups, *pieces, strict=True)}
    return Experience(groups, tokens, {name: float(value) for name, value in metrics.items()}, kl_weight)


def _split_kl(advantage_N: Tensor, kl_N: Tensor, coefficient: float, settings: PPOParameters) -> tuple[Tensor, float]:
    """Return the (N,) advantages to train on, and the weight of the KL as a loss term.

    k1: the KL is part of the advantages. k2, k3: the KL of each token is removed from its own advantage and becomes a
    loss term; the KL of later tokens is still part of the advantage. Whitening divides advantages and loss term by the
    same number, so it does not change kl_coef. The first update of a step has the same gradient for all three.
    """
    scale = 1.0
    if settings.whiten_advantages:
        scale = float(advantage_N.std(correction=0)) + 1e-8
        advantage_N = ppo.whiten(advantage_N)
    if settings.kl_estimator == "k1":
        return advantage_N, 0.0
    weight = coefficient / scale
    return advantage_N + weight * kl_N, weight


def _require_bounded(
    value_N: Tensor, total_S: Tensor, length_S: Tensor, groups: Sequence[TokenGroup], when: str
) -> None:
    """Raise NumericError for values that are not finite or MAX_VALUE_RATIO times as large as the largest reward."""
    largest = MAX_VALUE_RATIO * total_S.abs().max().clamp(min=1.0)
    bad_N = ~(value_N.abs() <= largest) | ~torch.isfinite(total_S.repeat_interleave(length_S))
    if not bool(bad_N.any()):
        return
    token = int(torch.nonzero(bad_N)[0])
    response = int(torch.searchsorted(length_S.cumsum(0), token, right=True))
    owners = [group.origin for group in groups for _ in group.response_ids]
    raise NumericError(
        f"the value of a token is {float(value_N[token]):.4g}, but the reward of its response is only "
        f"{float(total_S[response]):.4g}",
        where=f"{when}, {owners[response]}",
        why="the value model has diverged, so the advantages would be noise",
        fix="lower optim.lr, set ppo.value_clip, or scale the rewards to about 1",
    )
