"""Metrics of each source of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from preftune.train.metric_names import source_metric
from preftune.train.metrics import preference_metrics
from preftune.types import Judged, Logps

SHOWN = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@torch.no_grad()
def loss_by_source(
    loss_G: Tensor, count_G: Tensor, source_G: Tensor, names: Mapping[int, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the loss of each source as (sum, count), from the loss sums and counts of groups."""
    loss_G, count_G = loss_G.detach(), count_G.detach()
    result = {}
    for number, name in names.items():
        own = (source_G == number).to(loss_G.device)
        result[source_metric(name, "loss")] = (loss_G[own].sum(), count_G[own].sum().float())
    return result


@torch.no_grad()
def rewards_by_source(
    policy: Logps, reference: Logps | None, judged: Judged, beta: float, source_S: Tensor, names: Mapping[int, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the implicit rewards, margins and accuracies of each source, as `preference_metrics` does for all."""
    paired = bool(len(judged.better_P))
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for number, name in names.items():
        own_S = (source_S == number).to(judged.label_S.device)
        own_P = own_S[judged.better_P]
        if not (own_P.any() if paired else own_S.any()):
            continue
        part = replace(
            judged,
            better_P=judged.better_P[own_P],
            worse_P=judged.worse_P[own_P],
            label_S=torch.where(own_S, judged.label_S, 0),
        )
        metrics = preference_metrics(policy, reference, part, beta)
        result |= {source_metric(name, metric): metrics[metric] for metric in SHOWN if metric in metrics}
    return result
