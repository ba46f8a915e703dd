"""The report of a training run, from the files in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.report import harness
from preftune.report.figures import curves
from preftune.report.page import Section, write_page
from preftune.report.samples import samples_section
from preftune.train.manifest import read as read_manifest
from preftune.train.metric_names import SOURCE, by_source, source_metric
from preftune.train.metrics_file import valid_lines

CURVES = (
    ("Loss", "loss", ("loss",)),
    ("Implicit rewards", "beta * nats", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    ("Accuracy: share of pairs with a positive margin", "share", ("rewards/accuracies",)),
    ("Gradient norm", "norm", ("grad_norm",)),
    ("Learning rate", "rate", ("lr",)),
)
DRIFT = (
    ("Gap: how much less likely the data are than samples of the policy", "nats per response", ("drift/gap",)),
    ("Log-prob of samples and of the data", "nats per token", ("drift/own_per_token", "drift/data_per_token")),
    ("KL(policy || reference) on samples of the policy", "nats per response", ("drift/kl",)),
    ("Drift of the data: log policy - log reference", "nats per token", ("drift/chosen", "drift/rejected")),
    ("Displaced pairs: both responses less likely than under the reference", "share", ("drift/displaced",)),
    ("Length of the policy's samples", "tokens", ("drift/tokens",)),
    ("Samples of the policy", "share", ("drift/ended", "drift/repetition", "drift/diversity")),
)


def unit_of(manifest: Mapping[str, Any]) -> str:
    """Return what the numbers of evaluations count: rounds of preftune iterate, otherwise steps."""
    return "round" if "rounds" in manifest else "step"


def write_run_page(folder: Path, unit: str | None = None, out: Path | None = None) -> None:
    """Write a page with last metrics, curves, advice, drift, samples, resolved config and manifest of a run.

    unit   what the number of an evaluation counts, for the titles of samples; by default as in the manifest
    out    the page to write; by default `folder`/report.html
    """
    manifest = read_manifest(folder)
    lines, problem = read_metrics(folder / "metrics.jsonl", manifest.get("metrics"))
    best = manifest.get("best")
    last = {split: [line for line in lines if line["split"] == split][-1:] for split in ("train", "eval")}
    names = sorted({name for final in last.values() for line in final for name in line} - {"step", "split"})
    names = [name for name in names if not name.startswith(SOURCE)]
    table: list[tuple[str, ...]] = [("metric", "training, last step", "evaluation, last step")]
    table += [(name, *(_value(final, name) for final in last.values())) for name in names]
    sections = [
        Section("Result", " ".join(filter(None, [problem, _about_end(manifest)])), table=table),
        *_sources(lines, last, manifest.get("mixture", [])),
        Section("Curves", figures=[figure for curve in CURVES for figure in _curves(lines, "held-out", *curve)]),
        *_drift(lines, manifest.get("advice", {})),
        *_harness(folder),
        *samples_section(
            folder,
            unit or unit_of(manifest),
            best["step"] if best and best.get("final") != "last" else None,
        ),
        Section("Config", code=(folder / "config.yaml").read_text()),
        Section("Manifest", code=json.dumps(manifest, indent=1, ensure_ascii=False)),
    ]
    write_page(out or folder / "report.html", str(folder), sections)


def read_metrics(path: Path, end: Mapping[str, Any] | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of metrics.jsonl, and what is wrong with the file, or "".

    `end` has the length and hash of the file at the end of the run.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines, damaged = valid_lines(data)
    changed = end is not None and hashlib.sha256(data[: end["bytes"]]).hexdigest() != end["sha256"]
    problem = f"{path.name} was changed or damaged after the end of the run. " if changed else ""
    return lines, f"{problem}{len(damaged)} damaged lines are not shown." if damaged else problem.rstrip()


def _about_end(manifest: Mapping[str, Any]) -> str:
    """Say when the run ended if it stopped early, and which weights are in final/ if they are not the last ones."""
    best, early = manifest.get("best"), manifest.get("stopped_early")
    if best is None:
        return ""
    reason = f"{early} evaluations without a better {best['metric']}"
    text = f"The run stopped early after step {manifest['steps']}: {reason}. " if early else ""
    if best.get("final") == "last":
        return f"{text}final/ has the last weights. The best {best['metric']} is that of step {best['step']}."
    which = f"the weights of step {best['step']}" if best["step"] else "the weights before training"
    return f"{text}final/ has {which}, the best evaluation by {best['metric']} ({best['value']:.4g})."


def _harness(folder: Path) -> list[Section]:
    """Return the results of lm-evaluation-harness, if there are any."""
    table = harness.rows(folder)
    return [Section("lm-evaluation-harness", table=table)] if table else []


def _drift(lines: Sequence[dict[str, Any]], advice: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Return the advice, and curves of the policy's distance from its data and its reference, if the run has them."""
    figures = [figure for curve in DRIFT for figure in _curves(lines, "evaluation", *curve)]
    table = [("step", "advice"), *((str(entry["step"]), entry["text"]) for entry in advice.values())]
    sections = [Section("Advice", table=table)] if advice else []
    if figures:
        text = "" if advice else "No metric has exceeded its threshold."
        sections.append(Section("Distance from data and reference", text, figures=figures))
    return sections


def _sources(
    lines: Sequence[dict[str, Any]], last: Mapping[str, Sequence[dict[str, Any]]], mixture: Sequence[Mapping[str, Any]]
) -> list[Section]:
    """Return what the run used of each source of a mixture, with the loss and accuracy of each source."""
    final = {split: by_source(line[0]) if line else {} for split, line in last.items()}
    plan = {str(use["name"]): use for use in mixture}
    sources = list(dict.fromkeys([*plan, *final["train"], *final["eval"]]))
    if not sources:
        return []
    measured = [f"{name}, {word}" for word in ("training", "evaluation") for name in ("loss", "accuracy")]
    table = [("source", "path", "groups", "per epoch", "share", "in this run", *measured)]
    for source in sources:
        use = plan.get(source, {})
        numbers = [str(use.get(name, "")) for name in ("path", "groups", "per_epoch")]
        numbers += [f"{use['share']:.1%}" if use else "", str(use.get("in_run", ""))]
        own = [final[split].get(source, {}) for split in ("train", "eval")]
        values = [_value([o], name) for o in own for name in ("loss", "rewards/accuracies")]
        table.append((source, *numbers, *values))
    figures = []
    for title, y, metric in (("Accuracy by source", "share", "rewards/accuracies"), ("Loss by source", "loss", "loss")):
        figures += _curves(lines, "held-out", title, y, [source_metric(source, metric) for source in sources])
    return [Section("Sources", table=table, figures=figures)]


def _value(lines: Sequence[dict[str, Any]], name: str) -> str:
    return f"{lines[0][name]:.5g}" if lines and name in lines[0] else ""


def _curves(lines: Sequence[dict[str, Any]], evaluation: str, title: str, y: str, names: Sequence[str]) -> list[Any]:
    series = {
        f"{name}, {word}": [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
        for name in names
        for split, word in (("train", "training"), ("eval", evaluation))
    }
    series = {name: points for name, points in series.items() if points}
    return [curves(title, y, series)] if series else []
