"""Distribution shift: where the policy's own samples and the data are under the policy, over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preftune.report.figures.curves import is_number
from preftune.report.figures.drawn_pairs import RunPairs
from preftune.report.figures.words import num
from preftune.report.page import Absent, Card, Part

REASON = (
    "The run did not sample from its policy, because its monitor was off. To see this figure, train with the config "
    "section monitor."
)
TITLE = "The data stay, the policy moves"


def shift(run: RunPairs, lines: Sequence[Mapping[str, Any]]) -> Part:
    """Return the log-probs per token of own samples and of the data, over the steps."""
    gaps = [
        [
            line["step"],
            round(line["drift/gap"], 4),
            round(line["drift/kl"], 4) if is_number(line.get("drift/kl")) else None,
        ]
        for line in lines
        if line["split"] == "eval" and is_number(line.get("drift/gap"))
    ]
    if not gaps:
        return Absent("shift", TITLE, REASON)
    per_token = run.logps_KP2 / run.tokens_P2
    quantiles = np.quantile(per_token, [0.1, 0.5, 0.9], axis=1)  # (3, K, 2)
    bands = [
        {
            "name": f"{name} responses of the data",
            "colour": name,
            "dash": dash,
            "points": [
                [step, *(round(float(x), 4) for x in quantiles[:, k, side])] for k, step in enumerate(run.steps)
            ],
        }
        for side, (name, dash) in enumerate((("chosen", ""), ("rejected", "6 4")))
    ]
    own = [
        [line["step"], *(round(float(line[f"drift/own_{q}"]), 4) for q in ("q10", "median", "q90"))]
        for line in lines
        if line["split"] == "eval" and is_number(line.get("drift/own_median"))
    ]
    if own:
        bands.insert(0, {"name": "samples of the policy", "colour": "policy", "dash": "", "points": own})
    data = {"steps": list(run.steps), "bands": bands, "gaps": gaps}
    return Card(
        "shift",
        TITLE,
        sentence(gaps, run.steps[-1]),
        "Higher is more likely under the policy. The samples are new at every evaluation, with the same prompts and "
        "random numbers; the responses of the data are always the same.",
        "The chosen responses stay near the policy's samples.",
        "Both bands of the data sink away from the samples: the policy trains on responses that it no longer writes. "
        "Sample new ones with preftune iterate.",
        f"Measured: {len(run.pairs)} pairs at {len(run.steps)} moments, and {len(gaps)} evaluations with samples.",
        data,
        "shift",
    )


def sentence(gaps: Sequence[Sequence[Any]], step: int) -> str:
    """Return the sentence of the figure up to a step, as assets/figures/shift.js."""
    until = [gap for gap in gaps if gap[0] <= step]
    if not until:
        return "The policy's own samples were not measured up to this step."
    first, now = until[0], until[-1]
    begin = (
        f"At step {now[0]}, the data are"
        if now[0] == first[0]
        else f"From step {first[0]} to step {now[0]}, the data moved from {num(first[1])} to"
    )
    kl = "" if now[2] is None else f", and the policy is {num(now[2])} nats (KL) from its reference"
    return f"{begin} {num(now[1])} nats per response below the policy's own samples{kl}."
