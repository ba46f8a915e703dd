"""Pictures of the losses for docs/lookup/losses.md: the loss of one pair when its two log-ratios change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from preftune.losses import pairwise, reference_free
from preftune.losses.objective import is_joint
from preftune.report.svg import line_chart
from preftune.resolve import inputs_of
from preftune.types import PairLogps

START, LENGTH = -20.0, 12.0  # log-prob and number of tokens of both responses before they change
CHANGES = [change / 2 for change in range(-30, 31)]
TALLEST = 12.0  # higher values are left out, so that the rest stays readable; at least three times the first one


def losses() -> dict[str, str]:
    """Return an SVG for each loss that is a function of the log-probs of one pair."""
    tables: list[Mapping[str, Callable[..., Any]]] = [pairwise.TABLE, reference_free.TABLE]
    return {
        name: picture(name, function)
        for table in tables
        for name, function in table.items()
        if set(inputs_of(function)) <= {"policy", "reference", "probability"} and not is_joint(function)
    }


def picture(name: str, function: Callable[..., Any]) -> str:
    raised = curve(function, chosen=1.0, rejected=0.0)
    lowered = curve(function, chosen=0.0, rejected=-1.0)
    series = {"only the chosen response changes": raised, "only the rejected response changes (it falls by h)": lowered}
    if all(math.isclose(a[1], b[1], abs_tol=1e-9) for a, b in zip(raised, lowered, strict=False)):
        series = {"a change of the chosen response, of the rejected one, or of both": raised}
    return line_chart(f"{name}: loss of a pair at the default parameters", "loss", series, "h, nats")


def curve(function: Callable[..., Any], chosen: float, rejected: float) -> list[tuple[float, float]]:
    """Return (h, loss) while the log-probs move by `chosen` and `rejected` per nat of h."""
    changes = torch.tensor(CHANGES, dtype=torch.float64)
    same, length = torch.full_like(changes, START), torch.full_like(changes, LENGTH)
    inputs = {
        "policy": PairLogps(same + chosen * changes, same + rejected * changes, length, length),
        "reference": PairLogps(same, same, length, length),
        "probability": torch.ones_like(changes),
    }
    values = function(**{key: inputs[key] for key in inputs_of(function)}).tolist()
    highest = max(TALLEST, 3 * abs(values[CHANGES.index(0)]))
    return [(h, value) for h, value in zip(CHANGES, values, strict=True) if abs(value) <= highest]
