"""Results of lm-evaluation-harness in a run folder, as a table. The harness writes results_DATE.json files.

Each file has `results`: metric values by task, under names such as "acc,none" and "acc_stderr,none", and `n-samples`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = "harness"  # in a run folder


def result_files(folder: Path, nested: bool = True) -> list[Path]:
    """Return the result files in a run folder (`nested`) or in a folder of results, the oldest first."""
    return sorted(
        (folder / FOLDER if nested else folder).rglob("results*.json"), key=lambda path: (path.name, str(path))
    )


def rows(run: Path | None) -> list[tuple[str, ...]]:
    """Return the newest results in a run folder as a table; empty without results."""
    return rows_of(result_files(run) if run else [])


def rows_of(files: Sequence[Path]) -> list[tuple[str, ...]]:
    """Return the last value of each metric of each task with its standard error; empty without results."""
    values: dict[tuple[str, str], tuple[str, str, str]] = {}
    for path in files:
        with suppress(OSError, ValueError, TypeError, AttributeError, LookupError):
            content = json.loads(path.read_text(encoding="utf-8"))
            values |= read_results(content)
    if not values:
        return []
    body = [(task, metric, *cells) for (task, metric), cells in sorted(values.items())]
    return [("task", "metric", "value", "standard error", "rows"), *body]


def read_results(content: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Return value, standard error and number of rows by task and metric, from one result file."""
    values = {}
    for task, metrics in content["results"].items():
        samples = (content.get("n-samples") or {}).get(task) or {}
        count = str(samples.get("effective", "")) if isinstance(samples, Mapping) else ""
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            shown_error = f"{error:.4f}" if isinstance(error, int | float) else ""
            name = metric if filter_name == "none" else f"{metric} ({filter_name})"
            values[task, name] = f"{value:.4f}", shown_error, count
    return values
