"""The best evaluation of a run by one metric, and when to stop early.

Both are functions of the metric's values so far, which every checkpoint has. The trained weights of the best evaluation
are in `checkpoints/best-XXXXXXXX`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.config.values import lower_is_better
from preftune.errors import ConfigError
from preftune.ranks import group
from preftune.train.checkpoint import STATE, saved

Evaluations = Sequence[tuple[int, float]]
"""Step and value of the metric, for each evaluation; NaN where it is missing."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation: its step and value, and the number of evaluations since the last improvement."""

    step: int
    value: float
    since: int


def best_evaluation(evaluations: Evaluations, config: Mapping[str, Any]) -> Best | None:
    """Return the best of the evaluations by the section `best`, the first of equal ones; None without any.

    `since` counts the evaluations that were not better than the best one before them by more than `min_change`.
    """
    best: Best | None = None
    sign = -1 if lower_is_better(config["metric"], config["direction"]) else 1
    mark = -math.inf  # the value from which an improvement counts
    for step, value in evaluations:
        since = best.since + 1 if best else 0
        if math.isfinite(value) and sign * value > mark + config["min_change"]:
            mark, since = sign * value, 0
        if math.isfinite(value) and (best is None or sign * value > sign * best.value):
            best = Best(step, value, since)
        elif best:
            best = Best(best.step, best.value, since)
    return best


def value_of(evaluation: Mapping[str, Any], config: Mapping[str, Any], *, required: bool = False) -> float:
    """Return the value of the metric in an evaluation; NaN without it, or if `required`, ConfigError."""
    if config["metric"] in evaluation:
        return float(evaluation[config["metric"]])
    if not required:
        return math.nan
    names = sorted(name for name in evaluation if name not in ("step", "split"))
    what = f"the evaluations of this run have no metric {config['metric']!r}"
    fix = f"use one of {', '.join(names)}" if names else "remove best"
    raise ConfigError(what, where="best.metric", fix=fix)


def folder_of(checkpoints: Path, step: int) -> Path:
    """Return the folder with the weights of the evaluation after `step`."""
    return checkpoints / f"best-{step:08d}"


def keep_only(checkpoints: Path, steps: Iterable[int]) -> None:
    """On rank 0, delete the weights of all evaluations but `steps` and those that were best at a checkpoint."""
    folders = sorted(checkpoints.glob("best-????????"))
    if len(folders) < 2 or not group.first():
        return
    kept = {folder_of(checkpoints, step) for step in steps}
    for path in saved(checkpoints):
        kept |= {folder_of(checkpoints, step) for step in _best_of(path)}
    for folder in set(folders) - kept:
        shutil.rmtree(folder, ignore_errors=True)


def _best_of(checkpoint: Path) -> list[int]:
    """Return the step that was best at a checkpoint, if it is recorded."""
    try:
        step = json.loads((checkpoint / STATE).read_text())["best"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [step] if isinstance(step, int) else []


def end_message(best: Best, config: Mapping[str, Any], step: int, early: bool) -> str:
    """Say which weights are the result of a run that ends after `step`."""
    metric = config["metric"]
    reason = f"stopped early after step {step}: {best.since} evaluations without a better {metric}. " if early else ""
    which = "the weights before training" if best.step == 0 else f"the weights of step {best.step}"
    if config["final"] == "last":
        return (
            f"{reason}The result is the last weights. The best {metric}, {best.value:.4g}, is that of step {best.step}"
        )
    return f"{reason}The result is {which}, whose {metric} of {best.value:.4g} is the best one"


def evaluations_of(
    state: Mapping[str, Any], config: Mapping[str, Any], lines: Callable[[], Sequence[Mapping[str, Any]]]
) -> Evaluations:
    """Return the values of the metric of `best` from the state of a checkpoint; without them, from the metrics."""
    saved = state.get("evaluations")
    if saved is not None:
        return tuple((int(step), float(value)) for step, value in saved)
    return tuple((line["step"], value_of(line, config)) for line in lines() if line["split"] == "eval")


def state_of(evaluations: Evaluations, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the state of a checkpoint says about the section `best`."""
    if not config:
        return {}
    best = best_evaluation(evaluations, config)
    return {"evaluations": evaluations, "best": best.step if best else None}


def facts_of(best: Best | None, config: Mapping[str, Any] | None, stopped_early: bool) -> dict[str, Any]:
    """Return what the manifest of a complete run says about its best evaluation."""
    facts: dict[str, Any] = {}
    if best and config:
        facts["best"] = {"metric": config["metric"], "step": best.step, "value": best.value}
        facts["best"] |= {"final": config["final"]} if config["final"] != "best" else {}
    if best and stopped_early:
        facts["stopped_early"] = best.since
    return facts
