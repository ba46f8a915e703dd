"""Exchange the outputs of models between ranks, for losses that couple all items of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch

from preftune.ranks import group
from preftune.types import Judged, Logps

M = TypeVar("M", bound=Any)  # train.loop.Measured


def of_all_ranks(parts: list[M], device: torch.device) -> list[M]:
    """Return the model outputs of all ranks, in their order. Those of this rank keep their gradients."""
    if group.world() == 1:
        return parts
    values = group.gather([_moved(part, torch.device("cpu")) for part in parts])
    others = [[_moved(part, device) for part in of_rank] for of_rank in values]
    others[group.rank()] = parts
    return [part for of_rank in others for part in of_rank]


def _moved(part: M, device: torch.device) -> M:
    """Return a copy without gradients on a device."""

    def moved(logps: Logps) -> Logps:
        tensors = {name: getattr(logps, name).detach().to(device) for name in ("token_N", "sum_S", "length_S")}
        return Logps(**tensors, extra={name: value.detach().to(device) for name, value in logps.extra.items()})

    judged = {name: getattr(part.judged, name).to(device) for name in Judged.__dataclass_fields__}
    reference = moved(part.reference) if part.reference else None
    copy: M = replace(part, policy=moved(part.policy), reference=reference, judged=Judged(**judged))
    return copy
