"""A page that compares runs: their results, the settings in which they differ, their curves and their samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.report.figures.curves import DRIFT, TRAINING, curves, is_number
from preftune.report.figures.words import percent, short
from preftune.report.page import Folded, Page, Part, Table, write_page
from preftune.report.read import Run, read_run
from preftune.report.run import PPO, ROUNDS
from preftune.report.samples import SHOWN, comparisons, shortened

#: Differences in these say nothing about the result: they follow from the machine or are names.
UNINTERESTING = ("out", "track")
#: Metrics of the table of results; all others are folded away.
MAIN = (
    "loss", "loss_se", "rewards/accuracies", "rewards/margins", "drift/kl", "drift/kl_se", "drift/displaced",
    "drift/gap", "drift/tokens", "objective/score", "objective/score_se", "objective/kl", "diversity",
)  # fmt: skip


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Write a page that compares the runs in `folders` to `path`. Raises ValueError or OSError for a damaged file."""
    opened = [read_run(folder) for folder in folders]
    runs = [run for run, _ in opened]
    header = ("", *(str(run.folder) for run in runs))
    states = ("state", *("finished" if run.finished else "not finished" for run in runs))
    kept = [f"of step {run.kept}" if run.kept is not None else "the last ones" for run in runs]
    states_of_final = [("weights in final/", *kept)] if len(set(kept)) > 1 else []
    settings = _settings(runs)
    lines = {str(run.folder): run.lines for run in runs}
    methods = {run.method for run in runs}
    charts = [*(PPO if methods == {"ppo"} else ROUNDS if methods == {"iterate"} else TRAINING), *DRIFT]
    card = curves(charts, lines, runs[0].unit, "held-out data and evaluations")
    parts: list[Part | None] = [
        Table(
            "Results",
            header,
            [states, *states_of_final, *_results(runs, "eval", MAIN)],
            "Of the last evaluation of each run.",
        ),
        Table("Settings that differ", header, settings) if settings else Table("Settings that differ", text="None."),
        card,
        _advice(runs),
        _samples(runs),
        _everything(runs),
    ]
    page = Page(
        title=f"preftune report: {len(runs)} runs",
        verdict=_verdict(runs),
        warnings=[f"{run.folder}: {problem}" for run, problem in opened if problem],
        parts=[part for part in parts if part],
    )
    write_page(path, page)


def _verdict(runs: Sequence[Run]) -> str:
    """Return which run has the best value of the first metric that all of them measured."""
    for name, word, sign in (
        ("objective/score", "reward", 1), ("rewards/accuracies", "share of held-out pairs in the right order", 1),
        ("loss", "held-out loss", -1),
    ):  # fmt: skip
        values = [run.values(name) for run in runs]
        if all(values):
            last = [of_run[-1][1] for of_run in values]
            show = percent if "accuracies" in name else short
            if len(set(last)) == 1:
                return f"All {len(runs)} runs have the same {word}, {show(last[0])}."
            top = max(last, key=lambda value: sign * value)
            best = [str(run.folder) for run, value in zip(runs, last, strict=True) if value == top]
            others = ", ".join(show(value) for value in last if value != top)
            title = f"{'has' if len(best) == 1 else 'have'} the {'highest' if sign > 0 else 'lowest'}"
            return f"{' and '.join(best)} {title} {word}: {show(top)}, against {others}."
    return f"{len(runs)} runs, which have no measured metric in common."


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return the settings by full key, such as optim.lr."""
    result: list[tuple[str, str]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        result += _flat(value, f"{before}{key}.") if nested else [(f"{before}{key}", json.dumps(value, default=str))]
    return result


def _settings(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the rows of the settings that are not the same in all runs."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in UNINTERESTING)
    rows = [(key, *(settings.get(key, "") for settings in flat)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _results(runs: Sequence[Run], split: str, only: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return the last value of each metric of a split, of those in `only`, and at which step it was measured."""
    last = [next((line for line in reversed(run.lines) if line["split"] == split), {}) for run in runs]
    names = sorted({name for line in last for name in line} - {"step", "split"})
    names = [name for name in only if name in names] if only else names
    if not names:
        return []
    rows = [(name, *(f"{line[name]:.5g}" if is_number(line.get(name)) else "" for line in last)) for name in names]
    return [(runs[0].unit, *(str(line.get("step", "")) for line in last)), *rows]


def _everything(runs: Sequence[Run]) -> Folded:
    """Return the last value of every metric of each run, folded away."""
    rows = [("evaluation", *(str(run.folder) for run in runs)), *_results(runs, "eval")]
    rows += [("", *("" for _ in runs)), ("training", *(str(run.folder) for run in runs)), *_results(runs, "train")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(runs) + 1)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return Folded("All metrics, last values", code="\n".join(lines))


def _advice(runs: Sequence[Run]) -> Table | None:
    rows = [
        (str(run.folder), str(entry["step"]), str(entry["text"]))
        for run in runs
        for entry in (run.manifest.get("advice") or {}).values()
    ]
    return Table("Advice", ("run", "step", "advice"), rows) if rows else None


def _samples(runs: Sequence[Run]) -> Folded | None:
    """Return the last responses of all runs to the prompts that all of them have answered."""
    try:
        by_run = [{one.prompt: one for one in comparisons(run.folder, run.unit, run.kept)} for run in runs]
    except ValueError as error:
        return Folded("Samples", f"The samples could not be read: {error}", open=True)
    common = [prompt for prompt in by_run[0] if all(prompt in answered for answered in by_run)]
    texts: list[tuple[str, str]] = []
    for number, prompt in enumerate(common[:SHOWN], start=1):
        texts.append((f"Prompt {number}", shortened(prompt, from_end=True)))
        for run, answered in zip(runs, by_run, strict=True):
            sampled = [text for title, text in answered[prompt].responses if title.startswith(run.unit)]
            texts += [(str(run.folder), shortened(text)) for text in sampled[-1:]]
    text = f"The last responses of each run to {min(SHOWN, len(common))} of the {len(common)} prompts in common."
    return Folded("Samples", text, texts, open=True) if texts else None
