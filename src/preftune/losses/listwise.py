"""Losses on whole rankings: one value per group."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.formulas import implicit_reward
from preftune.types import Logps, Positive


def plackett_luce(policy: Logps, reference: Logps, rank: Tensor, group: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """DPO on rankings: the Plackett-Luce likelihood of the whole order. With two responses, this is DPO.

    loss        -sum_k log( exp s_k / sum_{j >= k} exp s_j ),   s = beta (log pi - log ref), in order of rank
    inputs      rank (S,): 1 is best, no ties within a group; group (S,): index of each response's group
    parameters  beta (0.1): strength of the pull to the reference
    source      Rafailov et al. 2023, arXiv:2305.18290 appendix A.3
    """
    score = implicit_reward(policy.sum_S, reference.sum_S, beta)
    order = torch.argsort(rank, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then by rank
    score, group = score[order], group[order]
    is_first = torch.cat([group.new_ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    row = torch.cumsum(is_first, 0) - 1
    start = torch.nonzero(is_first).squeeze(1)
    column = torch.arange(len(group), device=group.device) - start[row]
    sizes = torch.bincount(row)
    # The padding score underflows to 0 in every sum; with -inf its gradient would be undefined.
    score_GK = score.new_full((len(start), int(sizes.max())), -1e30)
    score_GK = score_GK.index_put((row, column), score)
    remaining_GK = torch.logcumsumexp(score_GK.flip(1), dim=1).flip(1)
    return torch.zeros_like(start, dtype=score.dtype).index_add(0, row, remaining_GK[row, column] - score)


TABLE = {"plackett_luce": plackett_luce}
