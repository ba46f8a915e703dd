"""The formulas of PPO on responses: KL penalty, advantages, clipped losses.

The tokens of all responses are concatenated (N tokens); `length_S` holds the length of each response. Value n is the
value of the state before token n.

Sources: Schulman et al. 2017, arXiv:1707.06347 (clipping); Schulman et al. 2016, arXiv:1506.02438 (advantages);
Ziegler et al. 2019, arXiv:1909.08593 (KL penalty and its control); Ouyang et al. 2022, arXiv:2203.02155.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


class Advantages(NamedTuple):
    """The advantage of every token, and the return: the target of its value."""

    advantage_N: Tensor
    return_N: Tensor


def kl_estimate(policy_N: Tensor, reference_N: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy || reference) of the next token from one token that the policy sampled.

    estimator   d = log policy - log reference
                k1: d, unbiased;  k2: d^2 / 2, never negative, biased;  k3: exp(-d) - 1 + d, never negative, unbiased
    note        as a penalty in the token rewards, only k1 yields the gradient of the KL: E[f(d) grad log pi] equals
                this gradient only for f(d) = d. k2 and k3 are used as loss terms, see `kl_loss`
    source      Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html
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
    """Return a loss term per token whose expected gradient is that of KL(policy || reference), for k2 or k3.

    loss        k2: stop-gradient(ratio) d^2 / 2;   k3: ratio (exp(-d) - 1 + d)
                ratio = exp(log policy - log old),   d = log policy - log reference
    gradient    ratio d grad log policy for both: exact in expectation over tokens that `old` sampled
    note        k3 without the ratio has the gradient (1 - exp(-d)) grad log policy, the gradient of KL(reference ||
                policy). The effect of a token on the KL of later tokens is in the advantage, not in this term
    source      Liu et al. 2025, arXiv:2510.01555 (k2 as a loss; the ratio)
    """
    d = policy_N - reference_N
    ratio = torch.exp(policy_N - old_N)
    if estimator == "k2":
        return ratio.detach() * d.square() / 2
    # ratio * exp(-d) = exp(log reference - log old) is constant, so it cannot overflow for very unlikely tokens.
    return torch.exp(reference_N - old_N) - ratio + ratio * d


def token_rewards(score_S: Tensor, kl_N: Tensor, coefficient: float, length_S: Tensor) -> Tensor:
    """Return (N,) rewards: -coefficient * KL at every token, plus the response's score at its last token."""
    reward_N = -coefficient * kl_N
    return reward_N.index_add(0, length_S.cumsum(0) - 1, score_S.to(reward_N.dtype))


def advantages(reward_N: Tensor, value_N: Tensor, length_S: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (GAE). The value after a response's last token is 0.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t
    """
    longest = int(length_S.max())
    position_L = torch.arange(longest, device=length_S.device)
    is_token_SL = position_L < length_S[:, None]

    def padded(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(is_token_SL.shape).masked_scatter(is_token_SL, values_N)

    reward_SL, value_SL = padded(reward_N), padded(value_N)
    advantage_SL = torch.zeros_like(value_SL)
    next_advantage, next_value = torch.zeros_like(value_SL[:, 0]), torch.zeros_like(value_SL[:, 0])
    for t in range(longest - 1, -1, -1):  # padding has reward, value and advantage 0
        delta = reward_SL[:, t] + gamma * next_value - value_SL[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        advantage_SL[:, t] = next_advantage
        next_value = value_SL[:, t]
    advantage_N = advantage_SL[is_token_SL]
    return Advantages(advantage_N, advantage_N + value_N)


def whiten(values_N: Tensor) -> Tensor:
    """Shift and scale the values to mean 0 and variance 1. A single value, or equal values, become 0."""
    return (values_N - values_N.mean()) / (values_N.std(correction=0) + 1e-8)


def policy_loss(policy_N: Tensor, old_N: Tensor, advantage_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return the clipped policy loss of each token, and whether clipping removed its gradient.

    ratio = exp(log policy - log old),   loss = -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)
    """
    ratio = torch.exp(policy_N - old_N)
    unclipped, clipped = ratio * advantage_N, ratio.clamp(1 - clip, 1 + clip) * advantage_N
    return -torch.minimum(unclipped, clipped), clipped < unclipped


def value_loss(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the loss of each value, and whether clipping removed its gradient. `clip` None means no clipping.

    loss = max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2
    """
    unclipped = (value_N - return_N).square()
    if clip is None:
        return unclipped / 2, torch.zeros_like(unclipped, dtype=torch.bool)
    clipped_value = torch.minimum(torch.maximum(value_N, old_N - clip), old_N + clip)
    clipped = (clipped_value - return_N).square()
    return torch.maximum(unclipped, clipped) / 2, clipped > unclipped


def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """Return 1 - var(R - V) / var(R): 1 is a perfect value model, 0 as good as a constant, below 0 worse."""
    return 1 - (return_N - value_N).var(correction=0) / return_N.var(correction=0).clamp(min=1e-12)


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """Return the KL coefficient for the next step, after `responses` responses with the mean KL `kl`.

    coefficient * (1 + clip(kl / target - 1, -0.2, 0.2) * min(1, responses / horizon))
    """
    return coefficient * (1 + max(-0.2, min(0.2, kl / target - 1)) * min(1.0, responses / horizon))
