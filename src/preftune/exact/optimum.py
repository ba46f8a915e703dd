"""The policy that maximises  E[r] - beta KL(pi || ref), exactly or by importance weighting of reference samples.

    pi*(y|x) = ref(y|x) exp(r(x,y) / beta) / Z(x),   Z(x) = sum_y ref(y|x) exp(r(x,y) / beta)

Source: Rafailov et al. 2023, arXiv:2305.18290 section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Tilt(NamedTuple):
    """Means over prompts: expected reward and KL(pi* || ref) in nats, and the effective number of samples a prompt."""

    reward: float
    kl: float
    effective: float


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(log pi*, log Z) along the last axis, which enumerates all responses of a prompt."""
    joint = log_ref + reward / beta
    log_z = torch.logsumexp(joint, dim=-1)
    return joint - log_z.unsqueeze(-1), log_z


def representative(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The one member of a reward's class that is an implicit reward: r - beta log Z.

    Rewards that differ by a number for each prompt have the same preferences and the same optimum: they are one
    class, and this is the same for all of them. Source: the same, theorem 1.
    """
    _, log_z = optimal_policy(log_ref, reward, beta)
    return reward - beta * log_z.unsqueeze(-1)


class Value(NamedTuple):
    """(P,) each: expected reward, KL(pi || ref) in nats, and what is maximised: reward - beta KL."""

    reward: Tensor
    kl: Tensor
    objective: Tensor


def value_of(log_pi: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Value:
    """What a policy is worth, over all responses of each prompt. That of pi* is beta log Z: nothing is worth more."""
    pi = log_pi.exp()
    expected, kl = (pi * reward).sum(-1), (pi * (log_pi - log_ref)).sum(-1)
    return Value(expected, kl, expected - beta * kl)


def ipo_optimum(log_ref: Tensor, log_mu: Tensor, preference: Tensor, beta: float) -> Tensor:
    """log pi of the policy that summed IPO has with all pairs of mu: ref exp(P(y beats mu) / beta) / Z.

    preference[..., i, j] is the probability that i is preferred to j. Source: Azar et al. 2023, arXiv:2310.12036.
    """
    beats = (preference * log_mu.exp().unsqueeze(-2)).sum(-1)
    return optimal_policy(log_ref, beats, beta)[0]


def tilt(reward_PM: Tensor, beta: float) -> Tilt:
    """The optimum at `beta`, estimated from M samples of the reference for each of P prompts.

    Each prompt's samples stand for the reference distribution (weight 1/M each), for which the optimum is exact.
    The estimate is good while `effective` is far above 1: at most log M nats of KL can be seen.
    """
    reward_PM = reward_PM.double()
    samples = reward_PM.shape[1]
    uniform = torch.full_like(reward_PM, -math.log(samples))
    log_pi, _ = optimal_policy(uniform, reward_PM, beta)
    weight = log_pi.exp()
    return Tilt(
        float((weight * reward_PM).sum(-1).mean()),
        float((weight * (log_pi - uniform)).sum(-1).mean()),
        float((1 / weight.square().sum(-1)).mean()),
    )


def corrected_tilt(reward_PM: Tensor, beta: float) -> Tilt:
    """`tilt` with the bias of few samples taken off to first order by the jackknife. Needs two samples.

    M samples cannot show a response that is rarer than 1/M, so `tilt` gives the optimum too little reward at a KL of
    more than about 1 nat (M = 24). Of an estimate t_M, this is M t_M - (M - 1) mean of the M estimates without one of
    the samples, for the reward and for the KL of each prompt. Beyond about log M / 2 nats some of the bias is left. For
    few prompts, or a small beta, the reward may come out above the largest one of the samples.
    Source: Quenouille 1956, Biometrika 43, "Notes on bias in estimation".
    """
    reward_PM = reward_PM.double()
    samples = reward_PM.shape[1]
    whole = tilt(reward_PM, beta)
    best_P1 = reward_PM.argmax(-1, keepdim=True)
    top_P1 = reward_PM.gather(1, best_P1)
    shifted_PM = reward_PM - top_P1
    weight_PM = (shifted_PM / beta).exp()
    is_best_PM = torch.zeros_like(reward_PM, dtype=torch.bool).scatter(1, best_P1, True)
    # Without sample i the sums lose one term. Where the best sample is left out, the others need their own scale.
    total_PM = (weight_PM.sum(-1, keepdim=True) - weight_PM).masked_fill(is_best_PM, 1.0)
    mean_PM = ((weight_PM * shifted_PM).sum(-1, keepdim=True) - weight_PM * shifted_PM) / total_PM
    kl_PM = mean_PM / beta - total_PM.log() + math.log(samples - 1)
    rest = reward_PM[~is_best_PM].view(len(reward_PM), samples - 1)
    without_best = tilt(rest, beta)
    others = ~is_best_PM
    reward = ((mean_PM + top_P1) * others).sum() / len(reward_PM) + without_best.reward
    kl = (kl_PM * others).sum() / len(reward_PM) + without_best.kl
    share = (samples - 1) / samples
    return Tilt(samples * whole.reward - share * float(reward), samples * whole.kl - share * float(kl), whole.effective)
