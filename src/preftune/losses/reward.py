"""The loss of a reward model."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.types import NonNegative, Pair


def bradley_terry(reward: Pair, probability: Tensor, margin: Tensor, *, centre: NonNegative = 0.0) -> Tensor:
    """Bradley-Terry: the likelihood that the better response wins; one value a judgement.

    loss      -p log sigmoid(d) - (1 - p) log sigmoid(-d) + centre (r_w + r_l)^2,   d = r_w - r_l - margin
    inputs    reward: r_w, r_l (P,) each; probability: soft label; margin: by how much, 0 if unknown
    note      `centre` keeps rewards near 0, which the likelihood leaves free
    source    Bradley and Terry 1952; Rafailov et al. 2023, arXiv:2305.18290; margin: Touvron et al. 2023,
              arXiv:2307.09288; centre: Eisenstein et al. 2023, arXiv:2312.09244 eq. 2
    """
    d = reward.chosen - reward.rejected - margin
    likelihood = -probability * logsigmoid(d) - (1 - probability) * logsigmoid(-d)
    return likelihood + centre * (reward.chosen + reward.rejected) ** 2
