"""What a run folder says about its run: config, manifest and metrics, read for reports and model cards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import RunError
from preftune.report.figures.curves import is_number
from preftune.train.manifest import read as read_manifest
from preftune.train.metrics_file import valid_lines

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its page sees it: folder, config, manifest, and the lines of its metrics."""

    folder: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    lines: Lines
    finished: bool = False

    @property
    def method(self) -> str:
        return "iterate" if "rounds" in self.manifest else method_of(self.config)

    @property
    def unit(self) -> str:
        """What the numbers of its lines count: rounds of preftune iterate, otherwise steps."""
        return "round" if "rounds" in self.manifest else "step"

    def values(self, name: str, split: str = "eval") -> list[tuple[int, float]]:
        """Return (step, value) of a metric."""
        lines = [line for line in self.lines if line["split"] == split]
        return [(int(line["step"]), float(line[name])) for line in lines if is_number(line.get(name))]

    def ends(self, name: str) -> tuple[float, float, str] | None:
        """Return the first and the last value of a metric, of held-out data if it was measured there, and of what."""
        for split, word in (("eval", "held-out"), ("train", "training")):
            values = self.values(name, split)
            if values:
                return values[0][1], values[-1][1], word
        return None


def method_of(config: Mapping[str, Any]) -> str:
    """Return the command that trained the model, from the sections of its config; "" without a config."""
    if not config:
        return ""
    for name, key in (("iterate", "rounds"), ("ppo", "rollout"), ("reward", "normalise"), ("dpo", "loss")):
        if key in config:
            return name
    return "sft"


def read_run(folder: Path) -> tuple[Run, str]:
    """Return a run as its page sees it, and what is wrong with its metrics, or ""."""
    manifest = read_manifest(folder)
    lines, problem = read_metrics(folder / "metrics.jsonl", manifest.get("metrics"))
    config = _read_config(folder / "config.yaml")
    settings = config if isinstance(config, dict) else {}
    return Run(folder, settings, manifest, lines, bool(manifest.get("finished"))), problem


def _read_config(path: Path) -> Any:
    """Return the values of a run's config. Raises RunError if it is not YAML, and OSError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        what = f"the config of the run is not valid YAML: {problem}"
        fix = "the config was changed or damaged after the run began; restore it"
        raise RunError(what, where=where, fix=fix) from error


def read_metrics(path: Path, end: Mapping[str, Any] | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of metrics.jsonl, and what is wrong with the file, or "".

    `end` has the length and hash of the file at the end of the run.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines, damaged = valid_lines(data)
    changed = end is not None and hashlib.sha256(data[: end["bytes"]]).hexdigest() != end["sha256"]
    problem = f"{path.name} was changed or damaged after the end of the run. " if changed else ""
    return lines, f"{problem}{len(damaged)} damaged lines are not shown." if damaged else problem.rstrip()
