"""Points and curves in the plane of KL(pi || ref) and expected reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from preftune.data.layout import Budget, micro_batches
from preftune.errors import ConfigError
from preftune.exact.optimum import estimate_optimum_jackknife
from preftune.model.compile import uncompiled
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import by_group
from preftune.model.reference import Live
from preftune.types import TokenGroup

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """A policy on the plane; `_se` are standard errors over prompts."""

    name: str
    kl: float
    reward: float
    kl_se: float = 0.0
    reward_se: float = 0.0


def measure(name: str, kl_PM: Floats, reward_PM: Floats) -> Point:
    """A point from M samples for each of P prompts: log-ratios of the samples, and their rewards."""
    kl, kl_se = mean_and_error(kl_PM)
    reward, reward_se = mean_and_error(reward_PM)
    return Point(name, kl, reward, kl_se, reward_se)


def mean_and_error(value_PM: Floats) -> tuple[float, float]:
    """The mean of M values for each of P prompts, and its standard error over prompts."""
    means = value_PM.mean(axis=1) if len(value_PM) > 1 else value_PM[0]  # of one prompt, errors are over its samples
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0


def tempered(scorer: Scorer, temperature: float) -> Scorer:
    """The scorer whose log-probs are those of sampling at this temperature: logits divided by it."""
    if temperature == 1:
        return scorer
    if scorer.head is None:
        raise ConfigError(
            f"temperature {temperature:g}: this model computes its logits in a way of its own",
            fix="evaluate it at temperature 1",
        )
    head = scorer.head
    return replace(scorer, head=replace(head, scale=head.scale / temperature, softcap=head.softcap / temperature))


@torch.no_grad()
def response_logps(model: Scorer | Live, groups: Sequence[TokenGroup], slots: int = 4096) -> Floats:
    """(P, M) summed log-probs of the M responses of each group under a model or a reference."""
    scorer = model if isinstance(model, Scorer) else model.scorer
    says = (lambda batch: logps(scorer, batch)) if isinstance(model, Scorer) else model.logps
    lay = partial(micro_batches, budget=Budget("rows", slots))
    with uncompiled(scorer.model):
        found = by_group(lambda batch: (says(batch.to(scorer.device)).sum_S.double().cpu(),), groups, lay)
    return np.array([sum_M.numpy() for (sum_M,) in found])


def best_of_n(reward_PM: Floats, n: int) -> Point:
    """Expected reward of the best of n of the M samples, over all subsets; KL = log n - (n - 1)/n.

    The KL is exact where no two responses have the same reward, else an upper bound.
    Source: Stiennon et al. 2020, arXiv:2009.01325 appendix G.3; Beirami et al. 2024, arXiv:2401.01879.
    """
    ordered = np.sort(reward_PM, axis=1)
    samples = ordered.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} needs at least {n} samples, got {samples}")
    # the i-th smallest is the best of C(i - 1, n - 1) of the C(M, n) subsets
    weight = np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])
    return measure_curve(f"best of {n}", math.log(n) - (n - 1) / n, ordered @ weight)


def measure_curve(name: str, kl: float, reward_P: Floats) -> Point:
    """A point whose KL is known."""
    error = float(reward_P.std(ddof=1) / math.sqrt(len(reward_P))) if len(reward_P) > 1 else 0.0
    return Point(name, kl, float(reward_P.mean()), 0.0, error)


def optimum(reward_PM: Floats, betas: Iterable[float]) -> list[Point]:
    """The closed-form optimum at each beta, estimated from samples of the reference and corrected for their number."""
    rewards = torch.from_numpy(reward_PM)
    return [
        Point(f"optimum, beta {beta:g}", t.kl, t.reward)
        for beta in betas
        for t in [estimate_optimum_jackknife(rewards, beta)]
    ]


def beta_at(reward_PM: Floats, kl: float) -> float:
    """The beta whose optimum has this KL, from samples of the reference (bisection)."""
    rewards = torch.from_numpy(reward_PM)
    scale = max(float(reward_PM.std()), 1e-12)
    low, high = 1e-4 * scale, 1e4 * scale
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if estimate_optimum_jackknife(rewards, middle).kl > kl else (low, middle)
    return high


def optimum_at(reward_PM: Floats, kl: float) -> float:
    """The most reward that any policy can have at this KL, as `optimum` estimates it."""
    return estimate_optimum_jackknife(torch.from_numpy(reward_PM), beta_at(reward_PM, kl)).reward
