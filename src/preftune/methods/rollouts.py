"""One step's experience of PPO: responses, their rewards, and of every token how much better it was than hoped.

Four models: the policy samples; the reference keeps it close; the reward judges whole responses; the value model hopes.
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
from preftune.model.logprobs import Scorer, head_input, logps, sum_responses
from preftune.model.memory import by_group
from preftune.model.reference import Live
from preftune.model.scalar import scalars
from preftune.model.token_logprobs import token_logprobs
from preftune.rewards.reward import Reward, require_rewards, responses_of
from preftune.types import Batch, Logps, TokenGroup

BLOWN_UP = 1000.0  # a value so many times the largest reward of a response has lost its way


@dataclass(frozen=True, slots=True)
class Critic:
    """The value model: a network of its own, or a linear map of the policy's last hidden states."""

    network: Scorer | None
    head: nn.Linear | None

    @property
    def module(self) -> Any:
        return self.network.model if self.network else self.head


@dataclass(frozen=True, slots=True)
class Actors:
    """The models of a run."""

    policy: Scorer
    reference: Live
    reward: Reward
    critic: Critic
    tokenizer: Any

    def act(self, batch: Batch) -> tuple[Logps, Tensor]:
        """The policy's log-probs and the values, with gradients: one pass of a model each, or one of both."""
        if self.critic.network:
            return logps(self.policy, batch), scalars(self.critic.network, batch)
        assert self.critic.head is not None
        states = head_input(self.policy, batch)
        token_N = token_logprobs(*states, batch.target_N)
        value_N = self.critic.head(states[0].to(self.critic.head.weight.dtype)).squeeze(-1).float()
        return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S), value_N


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the tokens of one group when an update begins; its responses' tokens one after another."""

    logp: Tensor
    reference: Tensor
    value: Tensor
    advantage: Tensor
    returned: Tensor


@dataclass(frozen=True, slots=True)
class Experience:
    """The responses of one step. `kl_weight`: of the KL as a loss term, 0 where it is in the rewards alone."""

    groups: list[TokenGroup]
    known: dict[int, Known]
    metrics: dict[str, float]
    kl_weight: float

    def of(self, batch: Batch) -> Known:
        """What is known of the tokens of a batch."""
        found = [self.known[id(group)] for group in batch.groups]
        parts = ("logp", "reference", "value", "advantage", "returned")
        return Known(*(torch.cat([getattr(known, name) for known in found]) for name in parts))


def draw(actors: Actors, prompts: Sequence[Prompt], rollout: RolloutConfig, seed: int) -> list[Sampled]:
    """The policy's responses to the prompts."""
    sampling = Sampling(rollout.responses, rollout.max_new_tokens, seed=seed)
    return sample(actors.policy.model, actors.tokenizer, [p.ids.tolist() for p in prompts], sampling)


def scores(
    actors: Actors, prompts: Sequence[Prompt], drawn: Sequence[Sampled], rollout: RolloutConfig, when: str
) -> tuple[Tensor, Tensor]:
    """(S,) rewards less the penalty for cut-off responses, and whether each response ended."""
    answers = responses_of(prompts, drawn)
    cut = next((a for a in answers if not a.ended), None)
    if cut and rollout.missing_eos == "stop":
        raise NumericError(
            f"a response did not end within {rollout.max_new_tokens} tokens",
            where=f"{when}, {cut.origin}",
            why=f"it is {cut.response!r}",
            fix="raise rollout.max_new_tokens, or set rollout.missing_eos=keep, with a penalty",
        )
    ended = torch.tensor([a.ended for a in answers])
    found = torch.from_numpy(require_rewards(actors.reward, answers, when)).float()
    return found - rollout.missing_eos_penalty * (~ended).float(), ended


@torch.no_grad()
def collect(
    actors: Actors,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    settings: PPOParameters,
    coefficient: float,
    budget: Budget,
    seed: int,
    step: int,
) -> Experience:
    """Sample, score, and compute advantages. Raises the errors of `require_rewards`, also for values that blew up."""
    when = f"step {step}"
    drawn = draw(actors, prompts, rollout, seed)
    score_S, ended_S = scores(actors, prompts, drawn, rollout, when)
    groups = [replace(s.group, origin=p.origin) for s, p in zip(drawn, prompts, strict=True)]
    device = actors.policy.device

    def look(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        batch = batch.to(device)
        policy, value_N = actors.act(batch)
        return policy.token_N, actors.reference.logps(batch).token_N, value_N

    found = by_group(look, groups, partial(micro_batches, budget=budget))
    policy_N, reference_N, value_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    length_S = torch.tensor([len(r) for g in groups for r in g.response_ids], device=device)
    score_S = score_S.to(device)
    scaled_S = score_S / (score_S.std(correction=0) + 1e-8) if settings.whiten_rewards else score_S
    kl_N = ppo.kl_estimate(policy_N, reference_N, "k1")  # the only one whose gradient as a reward is that of the KL
    reward_N = ppo.token_rewards(scaled_S, kl_N, coefficient, length_S)
    advantage_N, return_N = ppo.advantages(reward_N, value_N, length_S, settings.gamma, settings.lam)
    kl_S, total_S = sum_responses(policy_N - reference_N, length_S), sum_responses(reward_N, length_S)
    _require_sane(value_N, total_S, length_S, groups, when)
    advantage_N, kl_weight = _parted(advantage_N, kl_N, coefficient, settings)
    metrics: dict[str, Any] = {
        "objective/score": score_S.mean(),
        "objective/kl": kl_S.mean(),
        "objective/reward": total_S.mean(),
        "objective/kl_coef": coefficient,
        "policy/entropy": -policy_N.mean(),  # estimated from the sampled tokens
        "value/mean": value_N.mean(),
        "value/explained_variance": ppo.explained_variance(value_N, return_N),
        "returns/mean": return_N.mean(),
        "returns/std": return_N.std(correction=0),
        "responses/tokens": length_S.float().mean(),
        "responses/ended": ended_S.float().mean(),
    }
    sizes = [sum(map(len, group.response_ids)) for group in groups]
    pieces = [torch.split(values, sizes) for values in (policy_N, reference_N, value_N, advantage_N, return_N)]
    known = {id(group): Known(*parts) for group, *parts in zip(groups, *pieces, strict=True)}
    return Experience(groups, known, {name: float(value) for name, value in metrics.items()}, kl_weight)


def _parted(advantage_N: Tensor, kl_N: Tensor, coefficient: float, settings: PPOParameters) -> tuple[Tensor, float]:
    """The advantages to train on, and the weight of the KL as a loss term.

    k1: the KL stays in the advantages. k2 and k3: each token's own KL leaves its advantage, where the loss term takes
    its place; the KL of later tokens stays. Whitening divides both by the same number, or it would change kl_coef.
    So the first update of a step has the same gradient for all three.
    """
    scale = 1.0
    if settings.whiten_advantages:
        scale = float(advantage_N.std(correction=0)) + 1e-8
        advantage_N = ppo.whiten(advantage_N)
    if settings.kl_estimator == "k1":
        return advantage_N, 0.0
    weight = coefficient / scale
    return advantage_N + weight * kl_N, weight


def _require_sane(value_N: Tensor, total_S: Tensor, length_S: Tensor, groups: Sequence[TokenGroup], when: str) -> None:
    """Values that are not finite, or beyond every reward by far, teach the policy nothing."""
    largest = BLOWN_UP * total_S.abs().max().clamp(min=1.0)
    bad = ~(value_N.abs() <= largest) | ~torch.isfinite(total_S.repeat_interleave(length_S))
    if not bool(bad.any()):
        return
    at = int(torch.nonzero(bad)[0])
    response = int(torch.searchsorted(length_S.cumsum(0), at, right=True))
    owners = [group.origin for group in groups for _ in group.response_ids]
    raise NumericError(
        f"the value of a token is {float(value_N[at]):.4g}, the reward of its response {float(total_S[response]):.4g}",
        where=f"{when}, {owners[response]}",
        why="the value model has blown up, and its advantages would be noise",
        fix="lower optim.lr, set ppo.value_clip, or bring the rewards to a scale of about 1",
    )
