"""Losses of whole rankings; one value a group."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.types import Logps, Positive


def plackett_luce(policy: Logps, reference: Logps, rank: Tensor, group: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """DPO on rankings: the Plackett-Luce likelihood of the whole order. With two responses it is DPO.

    loss      -sum_k log( exp s_k / sum_{j >= k} exp s_j ),   s = beta (log pi - log ref), in order of rank
    input     rank (S,): 1 is best, all ranks of a group differ; group (S,): index of each response's group
    source    Rafailov et al. 2023, arXiv:2305.18290 appendix A.3
    """
    score = beta * (policy.sum_S - reference.sum_S)
    order = torch.argsort(rank, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then by rank
    score, group = score[order], group[order]
    first = torch.cat([group.new_ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    row = torch.cumsum(first, 0) - 1
    start = torch.nonzero(first).squeeze(1)
    place = torch.arange(len(group), device=group.device) - start[row]
    sizes = torch.bincount(row)
    # Empty places hold a score that vanishes in every sum; -inf would make their gradient undefined.
    grid_GK = score.new_full((len(start), int(sizes.max())), -1e30)
    grid_GK = grid_GK.index_put((row, place), score)
    remaining_GK = torch.logcumsumexp(grid_GK.flip(1), dim=1).flip(1)
    return torch.zeros_like(start, dtype=score.dtype).index_add(0, row, remaining_GK[row, place] - score)


TABLE = {"plackett_luce": plackett_luce}
