"""The loss of reward models."""

from __future__ import annotations

from torch import Tensor

from preftune.losses.pairwise import cross_entropy
from preftune.types import NonNegative, Pair


def bradley_terry(reward: Pair, probability: Tensor, margin: Tensor, *, centre: NonNegative = 0.0) -> Tensor:
    """Bradley-Terry: the negative log-likelihood that the better response wins, one value per judgement.

    loss        -p log sigmoid(d) - (1 - p) log sigmoid(-d) + centre (r_w + r_l)^2,   d = r_w - r_l - margin
    inputs      reward: r_w and r_l, (P,) each; probability: soft label p; margin: margin from the data, 0 without one
    parameters  centre (0.0): above 0, keeps rewards near 0; the likelihood depends on reward differences only
    source      Bradley and Terry 1952; Rafailov et al. 2023, arXiv:2305.18290; margin: Touvron et al. 2023,
                arXiv:2307.09288; centre: Eisenstein et al. 2023, arXiv:2312.09244 eq. 2
    """
    d = reward.chosen - reward.rejected - margin
    return cross_entropy(d, probability) + centre * (reward.chosen + reward.rejected) ** 2
