"""The page of a training run, from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.report.figures import curves
from preftune.report.page import Section, write_page

CURVES = (
    ("Loss", "loss", ("loss",)),
    ("Implicit rewards", "nats, times beta", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    ("Accuracy: share of pairs with a positive margin", "share", ("rewards/accuracies",)),
    ("Gradient norm", "norm", ("grad_norm",)),
    ("Learning rate", "rate", ("lr",)),
)
DRIFT = (
    ("The data from what the policy writes", "nats a response", ("drift/gap",)),
    ("Log-prob of own samples and of the data", "nats a token", ("drift/own_per_token", "drift/data_per_token")),
    ("KL(policy || reference) on own samples", "nats a response", ("drift/kl",)),
    ("Drift of the data's responses: log policy - log reference", "nats a token", ("drift/chosen", "drift/rejected")),
    ("Displaced pairs: both responses less likely than under the reference", "share", ("drift/displaced",)),
    ("Length of own samples", "tokens", ("drift/tokens",)),
    ("Own samples", "share", ("drift/ended", "drift/repetition", "drift/diversity")),
)


def write_run_page(folder: Path) -> None:
    """Write `folder`/report.html: last figures, curves, drift and advice, resolved config and manifest."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    manifest = (folder / "manifest.json").read_text()
    last = {split: [line for line in lines if line["split"] == split][-1:] for split in ("train", "eval")}
    names = sorted({name for found in last.values() for line in found for name in line} - {"step", "split"})
    table = [("", "training, last line", "evaluation, last line")]
    table += [(name, *(_figure(found, name) for found in last.values())) for name in names]
    sections = [
        Section("Result", table=table),
        Section(
            "Curves",
            figures=[figure for curve in CURVES for figure in _curves(lines, "held out", *curve)],
        ),
        *_drift(lines, json.loads(manifest).get("advice", {})),
        Section("Config", code=(folder / "config.yaml").read_text()),
        Section("Manifest", code=manifest),
    ]
    write_page(folder / "report.html", str(folder), sections)


def _drift(lines: Sequence[dict[str, Any]], advice: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Advice, and how far the policy has moved from its data and its reference, for runs that measured it."""
    figures = [figure for curve in DRIFT for figure in _curves(lines, "evaluation", *curve)]
    table = [("step", "advice"), *((str(found["step"]), found["text"]) for found in advice.values())]
    sections = [Section("Advice", table=table)] if advice else []
    if figures:
        text = "" if advice else "No figure has passed a threshold."
        sections.append(Section("Distribution shift", text, figures=figures))
    return sections


def _figure(found: Sequence[dict[str, Any]], name: str) -> str:
    return f"{found[0][name]:.5g}" if found and name in found[0] else ""


def _curves(lines: Sequence[dict[str, Any]], evaluation: str, title: str, y: str, names: Sequence[str]) -> list[Any]:
    series = {
        f"{name}, {word}": [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
        for name in names
        for split, word in (("train", "training"), ("eval", evaluation))
    }
    drawn = {name: points for name, points in series.items() if points}
    return [curves(title, y, drawn)] if drawn else []
