"""Expected reward against KL(pi || ref): points of policies, best of n, and the closed-form optimum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from preftune.errors import ConfigError
from preftune.exact.optimum import estimate_optimum_jackknife
from preftune.formulas import mean_and_error
from preftune.model.logprobs import Scorer

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """KL in nats and expected reward of a policy, with standard errors over prompts (`_se`)."""

    name: str
    kl: float
    reward: float
    kl_se: float = 0.0
    reward_se: float = 0.0


def measure(name: str, kl_PM: Floats, reward_PM: Floats) -> Point:
    """Return the point of a policy from the log-ratios and rewards of M samples for each of P prompts."""
    kl, kl_se = mean_and_error(kl_PM)
    reward, reward_se = mean_and_error(reward_PM)
    return Point(name, kl, reward, kl_se, reward_se)


def tempered(scorer: Scorer, temperature: float) -> Scorer:
    """Return a scorer that divides the logits by `temperature`, for samples drawn at that temperature."""
    if temperature == 1:
        return scorer
    if scorer.head is None:
        raise ConfigError(
            f"temperature {temperature:g} is not supported for this model",
            where="--temperatures",
            why="its logits are not a linear layer with an optional scale or softcap",
            fix="evaluate it at temperature 1",
        )
    head = scorer.head
    return replace(scorer, head=replace(head, scale=head.scale / temperature, softcap=head.softcap / temperature))


def best_of_n(reward_PM: Floats, n: int) -> Point:
    """Return the expected reward of the best of n, averaged over all subsets of the M samples; KL = log n - (n - 1)/n.

    The KL is exact if no two responses have the same reward, otherwise an upper bound.
    Source: Stiennon et al. 2020, arXiv:2009.01325 appendix G.3; Beirami et al. 2024, arXiv:2401.01879.
    """
    ordered = np.sort(reward_PM, axis=1)
    samples = ordered.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} needs at least {n} samples, got {samples}")
    # the i-th smallest reward is the largest in C(i - 1, n - 1) of the C(M, n) subsets
    weight = np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])
    reward, error = mean_and_error((ordered @ weight)[None])
    return Point(f"best of {n}", math.log(n) - (n - 1) / n, reward, 0.0, error)


def optimum(reward_PM: Floats, betas: Iterable[float]) -> list[Point]:
    """Estimate the closed-form optimum at each beta from samples of the reference, with the jackknife correction."""
    rewards = torch.from_numpy(reward_PM)
    return [
        Point(f"optimum, beta {beta:g}", t.kl, t.reward)
        for beta in betas
        for t in [estimate_optimum_jackknife(rewards, beta)]
    ]


def beta_at(reward_PM: Floats, kl: float) -> float:
    """Find the beta whose optimum has this KL by bisection, from samples of the reference."""
    rewards = torch.from_numpy(reward_PM)
    scale = max(float(reward_PM.std()), 1e-12)
    low, high = 1e-4 * scale, 1e4 * scale
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if estimate_optimum_jackknife(rewards, middle).kl > kl else (low, middle)
    return high


def optimum_at(reward_PM: Floats, kl: float) -> float:
    """Estimate the largest expected reward of any policy at this KL, as in `optimum`."""
    return estimate_optimum_jackknife(torch.from_numpy(reward_PM), beta_at(reward_PM, kl)).reward
