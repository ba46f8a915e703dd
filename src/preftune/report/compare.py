"""A page that compares runs: their results, the settings in which they differ, their curves and their samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.report.figures import curves
from preftune.report.page import Piece, Section, write_page
from preftune.report.run import CURVES, DRIFT, read_metrics, unit_of
from preftune.report.samples import SHOWN, comparisons, piece
from preftune.train.manifest import read as read_manifest

#: Differences in these say nothing about the result: they follow from the machine or are names.
UNINTERESTING = ("out", "track")


@dataclass(frozen=True, slots=True)
class _Run:
    """A run for the page: its name, its settings by full key, its metrics, what is wrong with them, its manifest."""

    name: str
    folder: Path
    settings: Mapping[str, str]
    lines: Sequence[Mapping[str, Any]]
    problem: str
    manifest: Mapping[str, Any]

    def last(self, split: str) -> Mapping[str, Any]:
        return next((line for line in reversed(self.lines) if line["split"] == split), {})


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Write a page that compares the runs in `folders` to `path`. Raises ValueError or OSError for a damaged file."""
    runs = [_read(folder) for folder in folders]
    header = ("", *(run.name for run in runs))
    states = ("state", *("finished" if run.manifest.get("finished") else "not finished" for run in runs))
    settings = _settings(runs)
    damaged = "\n".join(f"{run.name}: {run.problem}" for run in runs if run.problem)
    sections = [
        *([Section("Damaged files", damaged)] if damaged else []),
        Section("Settings that differ", "" if settings else "None.", [header, *settings] if settings else ()),
        Section("Held-out data, last evaluation", table=[header, states, *_results(runs, "eval")]),
        Section("Training data, last step", table=[header, *_results(runs, "train")]),
        Section("Curves", figures=_figures(runs)),
        *_advice(runs),
        *_samples(runs),
    ]
    write_page(path, f"{len(runs)} runs", [s for s in sections if s.text or s.figures or s.shaded or len(s.table) > 1])


def _read(folder: Path) -> _Run:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    manifest = read_manifest(folder)
    lines, problem = read_metrics(folder / "metrics.jsonl", manifest.get("metrics"))
    return _Run(str(folder), folder, dict(_flat(config)), lines, problem, manifest)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return the settings by full key, such as optim.lr."""
    result: list[tuple[str, str]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        result += _flat(value, f"{before}{key}.") if nested else [(f"{before}{key}", json.dumps(value, default=str))]
    return result


def _settings(runs: Sequence[_Run]) -> list[tuple[str, ...]]:
    """Return the rows of the settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in UNINTERESTING)
    rows = [(key, *(run.settings.get(key, "") for run in runs)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _results(runs: Sequence[_Run], split: str) -> list[tuple[str, ...]]:
    """Return the last value of each metric of a split, and at which step it was measured."""
    last = [run.last(split) for run in runs]
    names = sorted({name for line in last for name in line} - {"step", "split"})
    if not names:
        return []
    rows = [(name, *(f"{line[name]:.5g}" if _is_number(line.get(name)) else "" for line in last)) for name in names]
    return [(unit_of(runs[0].manifest), *(str(line.get("step", "")) for line in last)), *rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(runs: Sequence[_Run]) -> list[Any]:
    """Return a figure for each metric and split, with a line for each run."""
    figures = []
    for title, y, names in (*CURVES, *DRIFT):
        for name in names:
            for split, word in (("train", "training"), ("eval", "evaluation")):
                series = {run.name: _points(run, split, name) for run in runs}
                series = {label: points for label, points in series.items() if points}
                if series:
                    figures.append(curves(f"{title}: {name}, {word}", y, series))
    return figures


def _points(run: _Run, split: str, name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in run.lines if line["split"] == split and _is_number(line.get(name))]


def _advice(runs: Sequence[_Run]) -> list[Section]:
    rows = [
        (run.name, str(entry["step"]), str(entry["text"]))
        for run in runs
        for entry in run.manifest.get("advice", {}).values()
    ]
    return [Section("Advice", table=[("run", "step", "advice"), *rows])] if rows else []


def _samples(runs: Sequence[_Run]) -> list[Section]:
    """Return the last responses of all runs to the prompts that all of them have answered."""
    by_run = [{one.prompt: one for one in comparisons(run.folder, unit_of(run.manifest))} for run in runs]
    common = [prompt for prompt in by_run[0] if all(prompt in answered for answered in by_run)]
    shaded: list[tuple[str, Sequence[Piece]]] = []
    for number, prompt in enumerate(common[:SHOWN], start=1):
        shaded.append((f"Prompt {number}", [piece(prompt, from_end=True)]))
        for run, answered in zip(runs, by_run, strict=True):
            sampled = [text for title, text in answered[prompt].responses if title.startswith(unit_of(run.manifest))]
            shaded += [(run.name, [piece(text)]) for text in sampled[-1:]]
    text = f"The last responses of each run to {min(SHOWN, len(common))} of the {len(common)} prompts in common."
    return [Section("Samples", text, shaded=shaded)] if shaded else []
