"""What a run folder says about its run: config, manifest and metrics, read for reports and model cards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

    @property
    def kept(self) -> int | None:
        """The step whose weights are in final/, if these are not the last ones."""
        best = self.manifest.get("best")
        return int(best["step"]) if best and best.get("final") != "last" else None

    def of_final(self) -> Run:
        """Return the run with the metrics up to the weights in final/."""
        if self.kept is None:
            return self
        return replace(self, lines=[line for line in self.lines if line["step"] <= self.kept])

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
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        problem = "the file is missing" if isinstance(error, FileNotFoundError) else f"the file is damaged: {error}"
        fix = "restore the file, or rerun the command of the run"
        raise RunError(problem, where=str(folder / "config.yaml"), fix=fix) from None
    settings = config if isinstance(config, dict) else {}
    return Run(folder, settings, manifest, lines, bool(manifest.get("finished"))), problem


def read_metrics(path: Path, end: Mapping[str, Any] | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of metrics.jsonl, and what is wrong with the file, or "".

    `end` has the length and hash of the file at the end of the run.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines, damaged = valid_lines(data)
    changed = end is not None and hashlib.sha256(data[: end["bytes"]]).hexdigest() != end["sha256"]
    problem = f"{path.name} was changed or damaged after the end of the run. " if changed else ""
    return lines, f"{problem}{len(damaged)} damaged lines are not shown." if damaged else problem.rstrip()
