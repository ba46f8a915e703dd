"""The policy that maximises E[r] - beta KL(pi || ref): exact, or estimated from samples of the reference.

    pi*(y|x) = ref(y|x) exp(r(x,y) / beta) / Z(x),   Z(x) = sum_y ref(y|x) exp(r(x,y) / beta)

Source: Rafailov et al. 2023, arXiv:2305.18290 section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class OptimumEstimate(NamedTuple):
    """Means over prompts: expected reward, KL(pi* || ref) in nats, and the effective number of samples per prompt."""

    reward: float
    kl: float
    effective: float


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return (log pi*, log Z). The last axis enumerates all responses to a prompt."""
    joint = log_ref + reward / beta
    log_z = torch.logsumexp(joint, dim=-1)
    return joint - log_z.unsqueeze(-1), log_z


def estimate_optimum(reward_PM: Tensor, beta: float) -> OptimumEstimate:
    """Estimate the optimum from the rewards of M reference samples for each of P prompts.

    The result is exact for the empirical distribution, which gives each sample of a prompt the probability 1/M.
    The estimate is good while `effective` is far above 1. The estimated KL cannot exceed log M nats.
    """
    reward_PM = reward_PM.double()
    samples = reward_PM.shape[1]
    uniform = torch.full_like(reward_PM, -math.log(samples))
    log_pi, _ = optimal_policy(uniform, reward_PM, beta)
    weight = log_pi.exp()
    return OptimumEstimate(
        float((weight * reward_PM).sum(-1).mean()),
        float((weight * (log_pi - uniform)).sum(-1).mean()),
        float((1 / weight.square().sum(-1)).mean()),
    )


def estimate_optimum_jackknife(reward_PM: Tensor, beta: float) -> OptimumEstimate:
    """`estimate_optimum` with its first-order bias removed by the jackknife. Needs at least two samples per prompt.

    M samples rarely contain responses of probability below 1/M, so `estimate_optimum` underestimates the reward at a
    KL above about 1 nat (M = 24). For the reward and the KL of each prompt, the jackknife turns the estimate t_M into
    M t_M - (M - 1) * (mean of the M estimates that leave one sample out). Above about log M / 2 nats some bias remains.
    With few prompts or a small beta, the estimated reward can exceed the largest sampled reward.
    Source: Quenouille 1956, Biometrika 43, "Notes on bias in estimation".
    """
    reward_PM = reward_PM.double()
    samples = reward_PM.shape[1]
    whole = estimate_optimum(reward_PM, beta)
    best_P1 = reward_PM.argmax(-1, keepdim=True)
    top_P1 = reward_PM.gather(1, best_P1)
    shifted_PM = reward_PM - top_P1
    weight_PM = (shifted_PM / beta).exp()
    is_best_PM = torch.zeros_like(reward_PM, dtype=torch.bool).scatter(1, best_P1, True)
    # Leaving out sample i removes one term from the sums. If i is the best sample, the others need a different shift.
    total_PM = (weight_PM.sum(-1, keepdim=True) - weight_PM).masked_fill(is_best_PM, 1.0)
    mean_PM = ((weight_PM * shifted_PM).sum(-1, keepdim=True) - weight_PM * shifted_PM) / total_PM
    kl_PM = mean_PM / beta - total_PM.log() + math.log(samples - 1)
    rest = reward_PM[~is_best_PM].view(len(reward_PM), samples - 1)
    without_best = estimate_optimum(rest, beta)
    others = ~is_best_PM
    reward = ((mean_PM + top_P1) * others).sum() / len(reward_PM) + without_best.reward
    kl = (kl_PM * others).sum() / len(reward_PM) + without_best.kl
    share = (samples - 1) / samples
    return OptimumEstimate(
        samples * whole.reward - share * float(reward), samples * whole.kl - share * float(kl), whole.effective
    )
