"""The arithmetic of PPO on responses: KL penalty, advantages, clipped losses.

All tokens of all responses lie one after another (N), `length_S` tells them apart. Value n is that of the state before
token n.

Sources: Schulman et al. 2017, arXiv:1707.06347 (clipping); Schulman et al. 2016, arXiv:1506.02438 (advantages);
Ziegler et al. 2019, arXiv:1909.08593 (KL penalty and its control); Ouyang et al. 2022, arXiv:2203.02155.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


class Advantages(NamedTuple):
    """Of every token, and the returns that its value should have predicted."""

    advantage_N: Tensor
    return_N: Tensor


def kl_estimate(policy_N: Tensor, reference_N: Tensor, estimator: Estimator) -> Tensor:
    """KL(policy || reference) of the next token, estimated from one token that the policy sampled.

    d = log policy - log reference.  k1: d, unbiased;  k2: d^2 / 2, never negative, biased;  k3: exp(-d) - 1 + d, never
    negative, unbiased. Source: Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html

    These are estimates of a value. As a token's reward only k1 has the gradient of the KL: E[f(d) grad log pi] is that
    gradient for f(d) = d, and for no other f. k2 and k3 are loss terms instead, see `kl_loss`.
    """
    d = policy_N - reference_N
    match estimator:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(-d) + d


def kl_loss(policy_N: Tensor, old_N: Tensor, reference_N: Tensor, estimator: Estimator) -> Tensor:
    """The KL of each token as a loss term for k2 or k3, with the gradient of KL(policy || reference) of that token.

    ratio = exp(log policy - log old),   d = log policy - log reference

    loss      k2: stop-gradient(ratio) d^2 / 2;   k3: ratio (exp(-d) - 1 + d)
    gradient  ratio d grad log policy for both: in expectation the true gradient, also when `old` sampled the token
    note      k3 without its ratio has the gradient (1 - exp(-d)) grad log policy, which is that of KL(reference ||
              policy), the KL in the other direction. The KL of later tokens is not in this term: it is in the advantage
    source    Liu et al. 2025, arXiv:2510.01555 (k2 as a loss; the ratio)
    """
    d = policy_N - reference_N
    ratio = torch.exp(policy_N - old_N)
    if estimator == "k2":
        return ratio.detach() * d.square() / 2
    # ratio exp(-d) = exp(log reference - log old) is constant, and cannot overflow when a token becomes unlikely.
    return torch.exp(reference_N - old_N) - ratio + ratio * d


def token_rewards(score_S: Tensor, kl_N: Tensor, coefficient: float, length_S: Tensor) -> Tensor:
    """(N,) -coefficient * KL at every token, and the score of the response at its last one."""
    reward_N = -coefficient * kl_N
    return reward_N.index_add(0, length_S.cumsum(0) - 1, score_S.to(reward_N.dtype))


def advantages(reward_N: Tensor, value_N: Tensor, length_S: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation; after its last token a response is worth 0.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t
    """
    longest = int(length_S.max())
    place_L = torch.arange(longest, device=length_S.device)
    real_SL = place_L < length_S[:, None]

    def grid(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(real_SL.shape).masked_scatter(real_SL, values_N)

    reward_SL, value_SL = grid(reward_N), grid(value_N)
    advantage_SL = torch.zeros_like(value_SL)
    later, following = torch.zeros_like(value_SL[:, 0]), torch.zeros_like(value_SL[:, 0])
    for t in range(longest - 1, -1, -1):  # places behind a response's end hold 0, and so does what they hand on
        delta = reward_SL[:, t] + gamma * following - value_SL[:, t]
        later = delta + gamma * lam * later
        advantage_SL[:, t] = later
        following = value_SL[:, t]
    advantage_N = advantage_SL[real_SL]
    return Advantages(advantage_N, advantage_N + value_N)


def whiten(values_N: Tensor) -> Tensor:
    """Mean 0 and variance 1; a single value or equal values come to 0."""
    return (values_N - values_N.mean()) / (values_N.std(correction=0) + 1e-8)


def policy_loss(policy_N: Tensor, old_N: Tensor, advantage_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Loss of each token, and whether clipping took its gradient.

    ratio = exp(log policy - log old),   loss = -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)
    """
    ratio = torch.exp(policy_N - old_N)
    free, clipped = ratio * advantage_N, ratio.clamp(1 - clip, 1 + clip) * advantage_N
    return -torch.minimum(free, clipped), clipped < free


def value_loss(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Loss of each value, and whether clipping took its gradient.

    loss = max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2
    """
    free = (value_N - return_N).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    near = torch.minimum(torch.maximum(value_N, old_N - clip), old_N + clip)
    clipped = (near - return_N).square()
    return torch.maximum(free, clipped) / 2, clipped > free


def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """1 - var(R - V) / var(R): 1 is perfect, 0 is no better than a constant, below 0 is worse."""
    return 1 - (return_N - value_N).var(correction=0) / return_N.var(correction=0).clamp(min=1e-12)


def steered(coefficient: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """The KL coefficient after `responses` more responses with this mean KL.

    coefficient * (1 + clip(kl / target - 1, -0.2, 0.2) * min(1, responses / horizon))
    """
    return coefficient * (1 + max(-0.2, min(0.2, kl / target - 1)) * min(1.0, responses / horizon))
