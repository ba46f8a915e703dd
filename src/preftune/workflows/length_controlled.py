"""preftune eval length-controlled: AlpacaEval's length-controlled win rate, computed from its files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.errors import DataError, require_writable
from preftune.files import write_json
from preftune.formulas import Floats
from preftune.measures.length_controlled import Gamed, LengthControlled, length_controlled
from preftune.train.display import Display

GAMED_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")


@dataclass(frozen=True, slots=True)
class Annotations:
    """A judge's verdicts on one model, in the order of the benchmark's prompts.

    preference  0 (the baseline wins) to 1 (the model wins), NaN if the verdict could not be read
    longer      length of the baseline's response minus that of the model's, in characters
    """

    model: str
    baseline: str
    preference: Floats
    longer: Floats


def run(annotations: Path, gamed: Path, out: Path, display: Display) -> LengthControlled:
    """Write the figures of an annotations file to `out` and print them."""
    require_writable(out)
    rows = read_annotations(annotations)
    baselines, difficulty = read_gamed(gamed)
    missing = [i for i in range(len(rows.preference)) if i not in difficulty]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows.preference)} annotations have no instruction difficulty, the first is "
            f"number {missing[0]}",
            where=str(annotations),
            why=f"{gamed} has {len(difficulty)} prompts, and annotation number i belongs to the prompt with index i",
            fix="provide one annotation per prompt, in the order of the benchmark",
        )
    difficulties = np.array([difficulty[i] for i in range(len(rows.preference))])
    if rows.model == rows.baseline:
        result = LengthControlled(0.5, 0.0, math.nan, (0.0, 0.0, 0.0))  # the baseline against itself, by definition
    else:
        result = length_controlled(rows.preference, rows.longer, difficulties, baselines)
    win_rate, unread = float(np.nanmean(rows.preference)), int(np.isnan(rows.preference).sum())
    phi, psi, theta = result.weights
    figures = {
        "model": rows.model,
        "baseline": rows.baseline,
        "prompts": len(rows.preference),
        "unread": unread,
        "win_rate": 100 * win_rate,
        "length_controlled_winrate": 100 * result.rate,
        "lc_standard_error": 100 * result.standard_error,
        "strength": None if math.isnan(result.strength) else result.strength,
        "weights": {"length": phi, "instruction_difficulty": psi, "model": theta},
    }
    write_json(out, figures)
    display.say(
        f"{rows.model} against {rows.baseline}: length-controlled win rate {100 * result.rate:.2f} "
        f"(standard error {100 * result.standard_error:.2f}), win rate {100 * win_rate:.2f}; "
        f"{len(rows.preference)} prompts, {unread} unread"
    )
    display.say(f"done: {out}")
    return result


def read_annotations(path: Path) -> Annotations:
    """Read AlpacaEval's annotations.json. Raises DataError if it has more than one model or baseline."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"the file cannot be read as JSON: {error}"
        raise DataError(what, where=str(path), fix="pass annotations.json of AlpacaEval") from error
    if not isinstance(rows, list) or not rows:
        raise DataError("not a list of annotations", where=str(path), fix="use AlpacaEval's annotations.json")
    preferences, longer = [], []
    names: dict[str, set[str]] = {"generator_1": set(), "generator_2": set()}
    for number, row in enumerate(rows, start=1):
        where, fix = f"{path}, annotation {number}", "repair the annotation"
        if not isinstance(row, dict):
            raise DataError(f"the annotation is not an object: {row!r}", where=where, fix=fix)
        texts = [row.get(name) for name in ("output_1", "output_2", *names)]
        if not all(isinstance(text, str) for text in texts):
            raise DataError("output_1, output_2, generator_1 and generator_2 must be texts", where=where, fix=fix)
        for name, text in zip(names, texts[2:], strict=True):
            names[name].add(str(text))
        preferences.append(preference_of(row.get("preference"), where))
        longer.append(len(str(texts[0])) - len(str(texts[1])))
    for name, values in names.items():
        if len(values) > 1:
            raise DataError(
                f"{name} has {len(values)} values: {', '.join(sorted(values)[:3])}",
                where=str(path),
                why="the win rate is that of one model against one baseline",
                fix="write the annotations of each model to a separate file",
            )
    preference = np.array(preferences, dtype=np.float64)
    if bool(np.isnan(preference).all()):
        raise DataError("no annotation has a preference", where=str(path), fix="run the annotator again")
    (baseline,), (model,) = names["generator_1"], names["generator_2"]
    return Annotations(model, baseline, preference, np.array(longer, dtype=np.float64))


def preference_of(value: Any, where: str) -> float:
    """Convert AlpacaEval's scale, 1 (baseline wins) to 2 (model wins) or 0 for a tie, to [0, 1]; null becomes NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        why = "it must be from 1 (output_1 wins) to 2 (output_2 wins), or 0 for a tie"
        raise DataError(f"preference is {value!r}", where=where, why=why, fix="repair the annotation")
    return 0.5 if value == 0 else float(value) - 1


def read_gamed(path: Path) -> tuple[Gamed, dict[int, float]]:
    """Read AlpacaEval's df_gamed.csv: the rows of the gamed baselines, and the difficulty of each prompt by index."""
    columns: list[tuple[float, float, float, float]] = []
    difficulty_of: dict[int, float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in GAMED_COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(
                    f"no column {', '.join(missing)}",
                    where=str(path),
                    why="the file must have the gamed baselines and the difficulty of each prompt",
                    fix="use df_gamed.csv of the dataset tatsu-lab/alpaca_eval",
                )
            for row in reader:
                not_gamed = float(row.get("not_gamed_baseline") == "True")
                try:
                    preference = float(row["preference"] or "nan")  # empty if the verdict could not be read
                    index, length, difficulty = (float(row[name]) for name in GAMED_COLUMNS if name != "preference")
                except (TypeError, ValueError) as error:
                    what = f"a column does not contain a number: {error}"
                    raise DataError(what, where=f"{path}:{reader.line_num}", fix="repair the row") from error
                columns.append((preference, length, difficulty, not_gamed))
                difficulty_of.setdefault(int(index), difficulty)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = f"the file cannot be read as CSV: {error}"
        raise DataError(what, where=str(path), fix="pass df_gamed.csv of AlpacaEval") from error
    if not columns:
        raise DataError("no rows", where=str(path), fix="use df_gamed.csv of the dataset tatsu-lab/alpaca_eval")
    return Gamed(*np.array(columns, dtype=np.float64).T), difficulty_of
