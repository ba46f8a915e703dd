"""The optimal policy of one prompt as a tilt of the reference, beside the trained policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from preftune.exact.optimum import optimal_policy
from preftune.report.figures.words import num, percent
from preftune.report.page import Card

BETAS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.05)  # for which the page records exact values


@dataclass(frozen=True, slots=True)
class Response:
    """A response to the prompt: its text, its true reward, and its log-prob under the reference and each policy."""

    text: str
    reward: float
    logp: float
    tuned: Mapping[float, float]


def tilt(prompt: str, responses: Sequence[Response], drawn: int) -> Card:
    """Return the card. `drawn` is the number of samples of which the responses are a choice."""
    ordered = sorted(responses, key=lambda r: -r.reward)
    betas = sorted({beta for r in ordered for beta in r.tuned}, reverse=True)
    log_ref = torch.tensor([r.logp for r in ordered], dtype=torch.float64)
    coverage = float(log_ref.exp().sum())
    log_ref = log_ref - torch.logsumexp(log_ref, 0)
    reward = torch.tensor([r.reward for r in ordered], dtype=torch.float64)
    exact = [_exact(log_ref, reward, beta) for beta in BETAS]
    data = {
        "prompt": prompt,
        "drawn": drawn,
        "coverage": round(coverage, 4),
        "betas": betas,
        "responses": [
            {
                "text": r.text,
                "reward": round(r.reward, 6),
                "logp": round(r.logp, 6),
                "tuned": {f"{beta:g}": round(value, 6) for beta, value in r.tuned.items()},
            }
            for r in ordered
        ],
        "exact": exact,
    }
    return Card(
        "tilt",
        "The optimal policy is a tilt of the reference",
        sentence(ordered, betas),
        "A grey bar is what the SFT model would write, the green bar what the best policy at this beta would. The "
        "diamond is a policy that this run trained.",
        "Diamonds follow the green bars: longer where the reward is above average, shorter below.",
        "A diamond far right of its green bar at a low reward: the policy likes what the judge does not.",
        f"Measured: log-probs and true rewards. Exact: \u03c0*, Z, reward and KL among these {len(ordered)} responses, "
        f"which hold {percent(coverage, 1)} of the SFT model's probability (of {drawn:,} samples, the likeliest for "
        "each reward). Ratios of two responses are those of the full optimum.",
        data,
        "tilt",
    )


def _exact(log_ref: torch.Tensor, reward: torch.Tensor, beta: float) -> dict[str, Any]:
    """Return Z, expected reward and KL of the optimum at one beta."""
    log_pi, log_z = optimal_policy(log_ref, reward, beta)
    pi = log_pi.exp()
    values = {"z": log_z.exp(), "reward": (pi * reward).sum(), "kl": (pi * (log_pi - log_ref)).sum()}
    return {"beta": beta, **{name: round(float(value), 9) for name, value in values.items()}}


def sentence(responses: Sequence[Response], betas: Sequence[float]) -> str:
    """Return the sentence for the beta in the middle, as assets/figures/tilt.js."""
    beta = betas[len(betas) // 2] if betas else 0.3
    reward = np.array([r.reward for r in responses])
    high = float(reward.max()) / 4

    def good(logp: Any) -> str:
        p = np.exp(logp - logp.max())
        return percent(float((p / p.sum())[reward > high].sum()))

    ref = np.array([r.logp for r in responses])
    text = (
        f"At beta {beta:g}, the best policy gives {good(ref + reward / beta)} of its probability to responses with a "
        f"reward above {num(high)}, the SFT model {good(ref)}."
    )
    if not betas:
        return text
    return f"{text} The policy trained at beta {beta:g} gives {good(np.array([r.tuned[beta] for r in responses]))}."
