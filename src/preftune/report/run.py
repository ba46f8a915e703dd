"""The report of a run, from the files in its folder: verdict, next steps, figures, curves, samples, config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.report import harness, verdict
from preftune.report.figures import bradley_terry, pair_cards
from preftune.report.figures.curves import (
    LOSS_HEALTH,
    REWARD_HEALTH,
    TRAINING,
    Chart,
    curves,
    distance,
    is_number,
)
from preftune.report.figures.drawn_pairs import RunPairs, read_pairs, read_tokens
from preftune.report.figures.shift import shift
from preftune.report.figures.words import num, short
from preftune.report.page import Absent, Folded, Page, Part, Table, write_page
from preftune.report.read import Run, read_run
from preftune.report.samples import samples_section
from preftune.train.metric_names import SOURCE, by_source, source_metric

PPO = (
    Chart("Reward of the samples", "reward", ("objective/score",)),
    Chart("KL to the reference", "nats per response", ("objective/kl",)),
    Chart("Loss of the policy", "loss", ("loss/policy",)),
    Chart("Loss of the value model", "loss", ("loss/value",)),
    Chart("Clipped", "share", ("policy/clip_fraction", "value/clip_fraction")),
    Chart("Variance that the value model explains", "share", ("value/explained_variance",)),
    Chart("Gradient norm", "norm", ("grad_norm",)),
    Chart("Learning rate", "rate", ("lr",)),
)
ROUNDS = (
    Chart("Reward of the samples", "reward", ("objective/score",)),
    Chart("KL to the first model", "nats per response", ("objective/kl",)),
    Chart("Distinct word pairs", "share", ("diversity",)),
    Chart("Words per sample", "words", ("responses/words",)),
)


def write_run_page(folder: Path, unit: str | None = None, out: Path | None = None, *, finished: bool = False) -> None:
    """Write the page of a run.

    unit       what the number of an evaluation counts, for the titles of samples; by default as in the manifest
    out        the page to write; by default `folder`/report.html
    finished   the run is finished, although its manifest is written after the page
    """
    run, problem = read_run(folder)
    run = replace(run, finished=run.finished or finished)
    parts: list[Part | None] = [
        *_pair_figures(run),
        curves(
            _charts(run),
            {"": run.lines},
            run.unit,
            _evaluation_name(run),
            health=_health(run),
        ),
        distance(run.lines, run.unit, warned=bool(run.manifest.get("advice"))) if run.method == "dpo" else None,
        _rounds(run),
        *_sources(run),
        Table("lm-evaluation-harness", *_head(harness.rows(folder))) if harness.rows(folder) else None,
        *samples_section(folder, unit or run.unit, run.kept),
        _all_metrics(run),
        Folded("Config", code=(folder / "config.yaml").read_text(encoding="utf-8")),
        Folded("Manifest", code=json.dumps(run.manifest, indent=1, ensure_ascii=False)),
    ]
    page = Page(
        title=f"preftune {run.method}",
        about=str(folder),
        verdict=verdict.verdict(run),
        warnings=verdict.warnings(run, " ".join(filter(None, [problem, _about_end(run.manifest)]))),
        numbers=verdict.numbers(run),
        steps=verdict.steps(run),
        parts=[part for part in parts if part],
    )
    write_page(out or folder / "report.html", page)


def _charts(run: Run) -> Sequence[Chart]:
    return {"ppo": PPO, "iterate": ROUNDS}.get(run.method, TRAINING)


def _evaluation_name(run: Run) -> str:
    return "evaluations" if run.method in ("ppo", "iterate") else "held-out data"


def _health(run: Run) -> tuple[str, str]:
    return REWARD_HEALTH if run.method in ("ppo", "iterate") else LOSS_HEALTH


def _head(table: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return table[0], table[1:]


def scored_pairs(run: Run) -> tuple[RunPairs | None, str]:
    """Return the scored pairs of a run, and what is wrong with their files, or ""."""
    try:
        return read_pairs(run.folder, run.config, run.kept), ""
    except ValueError as error:
        return None, f"The scored pairs could not be read: {error}"


def _pair_figures(run: Run) -> list[Part]:
    """Return the figures of the scored pairs, or why there are none."""
    if run.method not in ("dpo", "reward"):
        return []
    pairs, problem = scored_pairs(run)
    if pairs is None:
        reason = problem or "The run has no scored pairs, because its loss has none or report_pairs is 0."
        return [Absent("pairs", "Figures of single pairs", reason)]
    data = pair_cards.pair_data(pairs)
    if pairs.kind == "reward":
        return [bradley_terry.of_run(pairs), pair_cards.gradient(pairs, data), pair_cards.pairs(pairs)]
    try:
        tokens = pair_cards.tokens(pairs, read_tokens(run.folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        tokens = Absent("tokens", pair_cards.TOKENS_TITLE, f"The token rewards could not be read: {error}")
    return [
        shift(pairs, run.lines),
        pair_cards.landscape(pairs, data),
        pair_cards.gradient(pairs, data),
        bradley_terry.of_run(pairs),
        pair_cards.by_hand(pairs),
        tokens,
        pair_cards.pairs(pairs),
    ]


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


def _rounds(run: Run) -> Table | None:
    """Return the table of the rounds of preftune iterate."""
    if run.method != "iterate":
        return None
    columns = (
        ("reward", "objective/score"), ("\u00b1", "objective/score_se"), ("KL, nats", "objective/kl"),
        ("distinct word pairs", "diversity"), ("repeated", "repetition"), ("ended", "responses/ended"),
        ("words", "responses/words"),
    )  # fmt: skip
    lines = [line for line in run.lines if line["split"] == "eval"]
    used = [(title, name) for title, name in columns if any(name in line for line in lines)]
    rows = [
        [str(line["step"]), *(num(line[name], 3) if is_number(line.get(name)) else "" for _, name in used)]
        for line in lines
    ]
    return Table("Rounds", ["round", *(title for title, _ in used)], rows, "Round 0 is the first model.")


def _sources(run: Run) -> list[Part]:
    """Return what the run used of each source of a mixture, with the loss and accuracy of each source."""
    mixture: Sequence[Mapping[str, Any]] = run.manifest.get("mixture", [])
    last = {split: [line for line in run.lines if line["split"] == split][-1:] for split in ("train", "eval")}
    final = {split: by_source(line[0]) if line else {} for split, line in last.items()}
    plan = {str(use["name"]): use for use in mixture}
    sources = list(dict.fromkeys([*plan, *final["train"], *final["eval"]]))
    if not sources:
        return []
    measured = [f"{name}, {word}" for word in ("training", "evaluation") for name in ("loss", "accuracy")]
    head = ("source", "path", "groups", "per epoch", "share", "in this run", *measured)
    rows = []
    for source in sources:
        use = plan.get(source, {})
        cells = [str(use.get(name, "")) for name in ("path", "groups", "per_epoch")]
        cells += [f"{use['share']:.1%}" if use else "", str(use.get("in_run", ""))]
        own = [final[split].get(source, {}) for split in ("train", "eval")]
        values = [short(o[name]) if name in o else "" for o in own for name in ("loss", "rewards/accuracies")]
        rows.append((source, *cells, *values))
    charts = []
    for title, y, metric in (("accuracy", "share", "rewards/accuracies"), ("loss", "loss", "loss")):
        charts += [Chart(f"{source}: {title}", y, (source_metric(source, metric),)) for source in sources]
    card = curves(charts, {"": run.lines}, run.unit, name="by_source")
    return [Table("Sources", head, rows), *([card] if card else [])]


def _all_metrics(run: Run) -> Folded | None:
    """Return the last value of every metric, folded away."""
    last = {split: [line for line in run.lines if line["split"] == split][-1:] for split in ("train", "eval")}
    names = sorted({name for final in last.values() for line in final for name in line} - {"step", "split"})
    names = [name for name in names if not name.startswith(SOURCE)]
    if not names:
        return None
    rows = [
        ["", "training", "evaluation"],
        *([name, *(_value(final, name) for final in last.values())] for name in names),
    ]
    width = max(len(row[0]) for row in rows)
    return Folded("All metrics, last values", code="\n".join(f"{a:<{width}} {b:>12} {c:>12}" for a, b, c in rows))


def _value(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    value = lines[0].get(name) if lines else None
    return f"{value:.5g}" if isinstance(value, int | float) else "" if value is None else str(value)
