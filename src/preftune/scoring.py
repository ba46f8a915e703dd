"""Compute log-probs or rewards of many groups in micro-batches, as float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preftune.data.layout import Budget, micro_batches
from preftune.model.compile import uncompiled
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import by_group
from preftune.model.reference import Live
from preftune.types import Batch, Logps, TokenGroup

Floats = npt.NDArray[np.float64]
SLOTS = 4096  # token slots of a micro-batch
ROWS = Budget("rows", SLOTS)


@torch.no_grad()
def score_responses(
    forward: Callable[[Batch], Logps], groups: Sequence[TokenGroup], device: torch.device, budget: Budget = ROWS
) -> list[Floats]:
    """Return for each group the (S,) summed log-probs, or rewards, of its responses.

    `forward` runs a model on one micro-batch, for example `partial(logps, scorer)`.
    """
    batches = partial(micro_batches, budget=budget)
    values = by_group(lambda batch: (forward(batch.to(device)).sum_S.double().cpu(),), groups, batches)
    return [sum_S.numpy() for (sum_S,) in values]


@torch.no_grad()
def score_tokens(
    scorer: Scorer, groups: Sequence[TokenGroup], budget: Budget, progress: Callable[[int], None]
) -> list[list[Tensor]]:
    """Return for each group one tensor of token log-probs for each of its responses."""
    batches = partial(micro_batches, budget=budget)
    device = scorer.device
    values = by_group(lambda b: (logps(scorer, b.to(device)).token_N.double().cpu(),), groups, batches, progress)
    return [
        list(torch.split(token_N, [len(ids) for ids in group.scored_ids]))
        for group, (token_N,) in zip(groups, values, strict=True)
    ]


def response_logps(model: Scorer | Live, groups: Sequence[TokenGroup], budget: Budget = ROWS) -> Floats:
    """Return the (P, M) summed log-probs of the M responses of each group under a model or a reference."""
    scorer = model if isinstance(model, Scorer) else model.scorer
    forward = partial(logps, scorer) if isinstance(model, Scorer) else model.logps
    with uncompiled(scorer.model):
        return np.array(score_responses(forward, groups, scorer.device, budget))
