"""The policy that maximises  E[r] - beta KL(pi || ref), exactly or by importance weighting of reference samples.

    pi*(y|x) = ref(y|x) exp(r(x,y) / beta) / Z(x),   Z(x) = sum_y ref(y|x) exp(r(x,y) / beta)

Source: Rafailov et al. 2023, arXiv:2305.18290 eq. 4.
"""

from __future__ import annotations

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


def tilt(reward_PM: Tensor, beta: float) -> Tilt:
    """The optimum at `beta`, estimated from M samples of the reference for each of P prompts.

    Each prompt's samples stand for the reference distribution (weight 1/M each), for which the optimum is exact.
    The estimate is good while `effective` is far above 1: at most log M nats of KL can be seen.
    """
    reward_PM = reward_PM.double()
    samples = reward_PM.shape[1]
    uniform = torch.full_like(reward_PM, -torch.log(torch.tensor(float(samples))).item())
    log_pi, _ = optimal_policy(uniform, reward_PM, beta)
    weight = log_pi.exp()
    return Tilt(
        float((weight * reward_PM).sum(-1).mean()),
        float((weight * (log_pi - uniform)).sum(-1).mean()),
        float((1 / weight.square().sum(-1)).mean()),
    )
