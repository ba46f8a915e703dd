"""Score groups of responses: the log-probs or rewards of any number of groups, in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preftune.data.layout import Budget, LayoutName, micro_batches
from preftune.model.compile import uncompiled
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import by_group
from preftune.model.reference import Live
from preftune.types import Batch, Logps, TokenGroup

Floats = npt.NDArray[np.float64]
SLOTS = 4096  # token slots of a micro-batch


@torch.no_grad()
def score_responses(
    ask: Callable[[Batch], Logps],
    groups: Sequence[TokenGroup],
    device: torch.device,
    layout: LayoutName = "rows",
    slots: int = SLOTS,
) -> list[Floats]:
    """Return for each group the (S,) summed log-probs, or rewards, of its responses.

    `ask` is what a model says about a micro-batch, for example `partial(logps, scorer)`.
    """
    batches = partial(micro_batches, budget=Budget(layout, slots))
    rows = by_group(lambda batch: (ask(batch.to(device)).sum_S.double().cpu(),), groups, batches)
    return [sum_S.numpy() for (sum_S,) in rows]


@torch.no_grad()
def score_tokens(
    ask: Callable[[Batch], Logps],
    groups: Sequence[TokenGroup],
    device: torch.device,
    layout: LayoutName = "rows",
    progress: Callable[[int], None] = lambda number: None,
) -> list[list[Tensor]]:
    """Return for each group one tensor of token log-probs for each of its responses."""
    batches = partial(micro_batches, budget=Budget(layout, SLOTS))
    rows = by_group(lambda batch: (ask(batch.to(device)).token_N.double().cpu(),), groups, batches, progress)
    return [
        list(torch.split(token_N, [len(ids) for ids in group.response_ids]))
        for group, (token_N,) in zip(groups, rows, strict=True)
    ]


def response_logps(model: Scorer | Live, groups: Sequence[TokenGroup], slots: int = SLOTS) -> Floats:
    """Return the (P, M) summed log-probs of the M responses of each group under a model or a reference."""
    scorer = model if isinstance(model, Scorer) else model.scorer
    ask = partial(logps, scorer) if isinstance(model, Scorer) else model.logps
    with uncompiled(scorer.model):
        return np.array(score_responses(ask, groups, scorer.device, slots=slots))
