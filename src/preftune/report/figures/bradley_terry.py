"""Preferences as a logistic curve: how often the better response wins, against the gap of its reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preftune.formulas import Z95
from preftune.report.figures.drawn_pairs import Floats, RunPairs, sigmoid
from preftune.report.figures.words import fixed, num, percent
from preftune.report.page import Absent, Card, Part

TITLE = "Preferences are a logistic curve"
LEAST = 10  # pairs in a bin; smaller bins are merged with a neighbour
MOST_BINS = 8
FEW = 30  # pairs below which nothing is compared with the curve


def bins_of(gap_P: Floats, label_P: Floats) -> list[dict[str, Any]]:
    """Return bins of pairs by the size of the gap, with predicted and observed shares that win.

    Each pair counts once, seen from the response with the larger reward, so all gaps are positive.
    """
    seen = gap_P != 0
    gap, label = np.abs(gap_P[seen]), np.where(gap_P[seen] > 0, label_P[seen], 1 - label_P[seen])
    if not len(gap):
        return []
    number = int(np.clip(len(gap) // LEAST, 1, MOST_BINS))
    order = np.argsort(gap, kind="stable")
    bins = []
    for part in np.array_split(order, number):
        share = float(label[part].mean())
        low, high = wilson(share, len(part))
        bins.append(
            {
                "from": round(float(gap[part].min()), 4),
                "to": round(float(gap[part].max()), 4),
                "gap": round(float(gap[part].mean()), 4),
                "n": len(part),
                "predicted": round(float(sigmoid(gap[part]).mean()), 4),
                "observed": round(share, 4),
                "low": round(low, 4),
                "high": round(high, 4),
            }
        )
    return bins


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n. Source: Wilson 1927, JASA 22, 209-212."""
    centre, width = share + Z95**2 / (2 * n), Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return (centre - width) / (1 + Z95**2 / n), (centre + width) / (1 + Z95**2 / n)


def of_run(run: RunPairs) -> Part:
    """Return the logistic curve with the run's implicit rewards, or a reward model's rewards, at each moment."""
    if not run.has_margins or run.per_token or run.loss in ("ipo", "hinge", "sppo"):
        reason = f"The margin of the loss {run.loss} is not the logit of a win, so there is nothing to compare."
        return Absent("bradley_terry", TITLE, reason)
    frames = [bins_of(margin, run.label_P) for margin in run.margin_KP]
    reward = "reward" if run.kind == "reward" else "implicit reward"
    data = {
        "steps": list(run.steps),
        "frames": frames,
        "gap_name": f"gap of the {reward}: beta \u00d7 (log-ratio of one response \u2212 of the other)"
        if run.kind != "reward"
        else "gap of the reward: r of one response \u2212 r of the other",
        "gap_unit": "in reward",
    }
    source = f"Measured: {len(run.pairs)} {run.split} pairs, seen from the response with the larger {reward}"
    return _card(data, sentence(frames[-1]), f"{source}. Computed: the curve.")


def _card(data: Mapping[str, Any], text: str, source: str) -> Card:
    return Card(
        "bradley_terry",
        TITLE,
        text,
        "Right is a larger reward gap, up is more certain to win. Discs are the pairs in bins, with as many in each; "
        "the curve is the model.",
        "Discs on the curve: a gap of 1 means 73 % wins.",
        "Discs below the curve on the right: the rewards are over-confident. Discs at one half everywhere: nothing was "
        "learned.",
        source,
        data,
        "bradley_terry",
    )


def sentence(bins: Sequence[Mapping[str, Any]]) -> str:
    """Return the sentence of the last bin, as assets/figures/bradley_terry.js."""
    total = sum(b["n"] for b in bins)
    if not total:
        return "No pair has a gap yet."
    b = bins[-1]
    where = f"gaps between {num(b['from'])} and {num(b['to'])}"
    if total < FEW:
        return (
            f"Of the {b['n']} pairs with {where}, the preferred response wins {percent(b['observed'])}: too few pairs "
            "to compare with the curve."
        )
    verdict = ""
    if not b["low"] <= b["predicted"] <= b["high"]:
        verdict = ": the gaps are too small" if b["observed"] > b["predicted"] else ": the gaps are too large"
    return (
        f"For {where}, the curve predicts {percent(b['predicted'])} wins; {percent(b['observed'])} "
        f"({fixed(100 * b['low'], 0)} to {percent(b['high'])}) are observed in {b['n']} pairs{verdict}."
    )
