"""The page of a training run, from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.errors import writing
from preftune.report.figures import curves
from preftune.report.page import Section, write_page

CURVES = (
    ("Loss", "loss", ("loss",)),
    ("Implicit rewards", "nats, times beta", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    ("Accuracy: share of pairs with a positive margin", "share", ("rewards/accuracies",)),
    ("Gradient norm", "norm", ("grad_norm",)),
    ("Learning rate", "rate", ("lr",)),
)


def write_run_page(folder: Path) -> None:
    """Write `folder`/report.html: last figures, curves, resolved config and manifest."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {split: [line for line in lines if line["split"] == split][-1:] for split in ("train", "eval")}
    names = sorted({name for found in last.values() for line in found for name in line} - {"step", "split"})
    table = [("", "training, last line", "held out, last")]
    table += [(name, *(_figure(found, name) for found in last.values())) for name in names]
    figures = [figure for title, y, wanted in CURVES for figure in _curves(title, y, wanted, lines)]
    sections = [
        Section("Result", table=table),
        Section("Curves", figures=figures),
        Section("Config", code=(folder / "config.yaml").read_text()),
        Section("Manifest", code=(folder / "manifest.json").read_text()),
    ]
    with writing(folder / "report.html"):
        write_page(folder / "report.html", str(folder), sections)


def _figure(found: Sequence[dict[str, Any]], name: str) -> str:
    return f"{found[0][name]:.5g}" if found and name in found[0] else ""


def _curves(title: str, y: str, names: Sequence[str], lines: Sequence[dict[str, Any]]) -> list[Any]:
    series = {
        f"{name}, {word}": [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
        for name in names
        for split, word in (("train", "training"), ("eval", "held out"))
    }
    drawn = {name: points for name, points in series.items() if points}
    return [curves(title, y, drawn)] if drawn else []
