"""Warnings of a run about its data, its training and its policy: each is printed once and saved for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.measures.advice import advice, held_out_rose
from preftune.measures.diagnosis import about_pairs, about_rewards, about_training, about_weights, pair_facts
from preftune.model.weights import changed_share
from preftune.ranks import group
from preftune.train.run import Run
from preftune.types import TokenGroup

EXAMINED = 10_000  # groups of the data, at most: 0.2 s


def advise_on_pairs(run: Run, groups: Sequence[TokenGroup]) -> None:
    """Warn about the pairs of a new run."""
    if run.start == 0 and group.first():
        _note(run, 0, about_pairs(pair_facts(islice(groups, EXAMINED))))


def advise(run: Run, step: int) -> None:
    """Warn about the training up to `step`, and about its evaluation. The latest text of each subject is saved."""
    if not group.first():
        return
    lines = run.metric_lines()
    train = [line for line in lines if line["split"] == "train"]
    texts = about_training(train, run.identity["config"].get("batch", {}).get("pairs", 1))
    if train and "responses/tokens" in train[-1]:
        texts |= about_rewards(train)
    evaluations = [line for line in lines if "drift/gap" in line and line["split"] == "eval"]
    if evaluations and evaluations[-1]["step"] == step:
        texts |= advice(evaluations[-1], evaluations[0])
    _note(run, step, texts)


def advise_at_the_end(run: Run, final: Path) -> None:
    """Warn if the held-out loss rose, or if the saved model in `final` is almost the model before training."""
    evaluations = [line for line in run.metric_lines() if line["split"] == "eval" and "loss" in line]
    keeps_best = run.best_config is not None  # then a rise after the best evaluation has no effect
    texts = {"held-out loss": held_out_rose(evaluations)} if evaluations and not keeps_best else {}
    step = int(evaluations[-1]["step"]) if evaluations else 0
    base = Path(run.identity["config"]["model"]["path"]).expanduser()
    base = base / "final" if (base / "final").is_dir() else base
    if changed := changed_share(base, final):  # a Hub model or one in memory has no files here
        texts |= about_weights(*changed)
    _note(run, step, {subject: text for subject, text in texts.items() if text}, with_step=False)


def _note(run: Run, step: int, texts: Mapping[str, str], *, with_step: bool = True) -> None:
    earlier: dict[str, Any] = run.fact("advice") or {}
    for subject, text in texts.items():
        if subject not in earlier:
            run.display.say(f"step {step}: {text}" if with_step else text)
    if any(earlier.get(name, {}).get("text") != text for name, text in texts.items()):
        with run.optional("manifest.json"):
            run.note(advice={**earlier, **{name: {"step": step, "text": text} for name, text in texts.items()}})
