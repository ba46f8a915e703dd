"""preftune data noise: list judgements that models rank backwards, the most confident first.

Each fold is ranked by a model that was trained on the other folds:

    fold-N/train.json     the groups of all other folds
    fold-N/run/           a DPO or reward model run on them
    fold-N/margins.json   the margins of this fold's judgements under that model
    noise.jsonl           judgements ranked backwards with a confidence of at least `confidence`
    summary.json          the accuracy of the models, and counts

Each file is complete or absent, so the same command resumes after an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import load_renderer
from preftune.config.schema import DPOConfig, NoiseConfig, RewardConfig
from preftune.data.convert import group_rows
from preftune.data.layout import Budget
from preftune.data.loss_items import require_judged
from preftune.data.split import folds
from preftune.data.tokenize_groups import tokenize
from preftune.errors import ConfigError, DataError
from preftune.files import write_json, write_rows
from preftune.formats.account import Account, format_origins
from preftune.formulas import implicit_reward, labelled_margin, win
from preftune.lifecycle.context import within_context
from preftune.lifecycle.data import limits_of, read_data
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.plan import print_plan
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.lifecycle.sources import source_paths
from preftune.measures.label_noise import Floats, confidence, slope
from preftune.methods import dpo, reward
from preftune.methods.objective import bind_objective
from preftune.methods.reference import reference_kind
from preftune.model import load
from preftune.model.locate import with_quant
from preftune.model.logprobs import Scorer, logps
from preftune.model.scalar import load_scalar, reward_logps, scalar_scorer, with_reward_slot
from preftune.scoring import SLOTS, score_responses
from preftune.train.display import Display
from preftune.train.manifest import Parts, run_identity
from preftune.train.run import Run
from preftune.types import Judgement, PreferenceGroup, TokenGroup, content, plain

Groups = Sequence[PreferenceGroup]
CENTRE = 0.01  # keeps rewards near 0; hardly changes the margins
MAX_CHARACTERS = 200  # of a text in noise.jsonl


@dataclass(frozen=True, slots=True)
class RankedJudgement:
    """A judgement of a held-out group, and its margin under the model of its fold."""

    group: PreferenceGroup
    judgement: Judgement
    fold: int
    margin: float


def run(config: NoiseConfig, *, display: Display | None = None, dry_run: bool = False) -> Path:
    """Train and rank fold by fold. Write noise.jsonl and return its path."""
    display, out = display or Display(), Path(config.out)
    if config.data.eval is not None:
        what, fix = "every fold is held out in turn", "remove it; `folds` sets the number of folds"
        raise ConfigError(what, where="data.eval", fix=fix)
    if config.data.stream:
        raise ConfigError("the data are split into folds before training", where="data.stream", fix="remove it")
    config = within_context(config, display)
    source = load.locate(config.model.path)
    if config.ranker == "dpo":
        require_implicit_reward(config)
    text = read_data(config.data, load.has_chat_template(source, chat_template=config.data.chat_template))
    identity = run_identity(config.model_dump(mode="json"), text.fingerprint)
    Run.check(out, identity, type(config))
    for group in text.train:
        require_judged(group, "noise")
    parts = folds(text.train, config.folds)
    display.say("\n".join(line for account in text.accounts for line in account.lines()))
    display.say(
        f"{config.folds} folds with {', '.join(str(len(part)) for part in parts)} groups; no prompt is in two folds"
    )
    if dry_run:
        return print_plan(config, [], display)
    with closing(Run.open(out, identity, display, type(config))) as log:
        return rank(config, log, text.train, parts)


def rank(config: NoiseConfig, log: Run, groups: Groups, parts: Sequence[Groups]) -> Path:
    """Train and rank fold by fold, and write the result."""
    display, out = log.display, log.folder
    ranked: list[RankedJudgement] = []
    for number, part in enumerate(parts, start=1):
        others = [group for other in parts if other is not part for group in other]
        ranked += rank_fold(config, number, others, part, display)
    not_ranked = sum(len(group.judgements) for group in groups) - len(ranked)
    if not ranked:
        fix = "raise data.max_length, or use shorter rows"
        raise DataError("no judgement is left to rank", where=", ".join(source_paths(config.data)), fix=fix)
    summary = report(config, ranked, not_ranked)
    log.note(finished=True, **summary)
    display.say("\n".join(summary_lines(config, summary)))
    display.say(f"done: {out / 'noise.jsonl'}")
    return out / "noise.jsonl"


def require_implicit_reward(config: NoiseConfig) -> None:
    """Raise ConfigError for a loss whose policies have no implicit reward, or a reference that cannot be used."""
    objective, where = bind_objective(config.terms), f"loss.name {config.terms[0].name}"
    if objective.items != "pairs" or not objective.uses_reference:
        fix = "use a loss on pairs with a reference, such as sigmoid or ipo"
        raise ConfigError("the loss does not define an implicit reward", where=where, fix=fix)
    reference_kind(_dpo(config, Path(config.out)), objective)
    if config.reference.path:
        load.locate(config.reference.path, "reference.path")


def rank_fold(
    config: NoiseConfig, number: int, others: Groups, held_out: Groups, display: Display
) -> list[RankedJudgement]:
    """Return the held-out judgements with their margins, read from margins.json if it exists."""
    folder = Path(config.out) / f"fold-{number}"
    path, done = folder / "margins.json", Parts(Path(config.out), display.say)
    if not done.done(path):
        display.say(f"fold {number} of {config.folds}: {len(others)} groups to train on, {len(held_out)} to rank")
        write_json(folder / "train.json", list(group_rows(others)))
        write_json(path, margins_of(config, train(config, folder, display), held_out, display), durable=True)
        done.record(path)
        shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # the fold is complete
    return [
        RankedJudgement(held_out[row["group"]], Judgement(**row["judgement"]), number, row["margin"])
        for row in json.loads(path.read_text())
    ]


def train(config: NoiseConfig, folder: Path, display: Display) -> Path:
    """Train the model of a fold on its train.json with the method `config.ranker`. Return the model's folder."""
    if config.ranker == "reward":
        return reward.run(RewardConfig(**_common(config, folder), centre=CENTRE, normalise=False), display=display)
    return dpo.run(_dpo(config, folder), display=display)


def _dpo(config: NoiseConfig, folder: Path) -> DPOConfig:
    return DPOConfig(**_common(config, folder), loss=config.loss, reference=config.reference, monitor=None)


def _common(config: NoiseConfig, folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"train": str(folder / "train.json"), "format": "groups", "ignore": [], "limit": None}
    sections = {
        name: getattr(config, name) for name in ("model", "optim", "batch", "train", "lora", "track", "track_names")
    }
    sections["train"] = config.train.model_copy(update={"save_end": False})
    return {**sections, "data": config.data.model_copy(update=data), "out": str(folder / "run")}


@torch.no_grad()
def margins_of(config: NoiseConfig, final: Path, held_out: Groups, display: Display) -> list[dict[str, Any]]:
    """Return each judgement with the index of its group and its margin, the reward of better minus worse."""
    source = load.locate(str(final))
    renderer = load_renderer(config.data, source, moment=load.chat_record(source).get("moment"))
    account = Account("held out")
    numbered = [replace(group, origin=str(index)) for index, group in enumerate(held_out)]
    groups = tokenize(numbered, renderer, limits_of(config.data), account)
    for reason, indices in account.dropped.items():
        origins = format_origins([held_out[int(index)].origin for index in indices])
        display.say(f"not ranked {len(indices)} ({origins}): {reason}")
    dtype, device = compute_dtype(config.model), device_of(None)
    if config.ranker == "reward":
        scorer = scalar_scorer(load_scalar(source, dtype).to(device))
        layout, _ = choose_layout(scorer, "auto")
        forward, slots = partial(reward_logps, scorer), with_reward_slot(groups)
        rewards = score_responses(forward, slots, scorer.device, Budget(layout, SLOTS))
    else:
        base = load.locate(config.reference.path or with_quant(config.model.path, config.model.quant))
        policy, reference = (logps_of(Scorer.of(load.load_model(s, dtype).to(device)), groups) for s in (source, base))
        rewards = [implicit_reward(p, r, beta=1.0) for p, r in zip(policy, reference, strict=True)]
    return [
        {"group": int(group.origin), "judgement": plain(j), "margin": float(values[j.better] - values[j.worse])}
        for group, values in zip(groups, rewards, strict=True)
        for j in group.judgements
    ]


def logps_of(scorer: Scorer, groups: Sequence[TokenGroup]) -> list[Floats]:
    """Return the summed log-probs of each group's responses, with the fastest layout that the model supports."""
    layout, _ = choose_layout(scorer, "auto")
    return score_responses(partial(logps, scorer), groups, scorer.device, Budget(layout, SLOTS))


def report(config: NoiseConfig, ranked: Sequence[RankedJudgement], not_ranked: int) -> dict[str, Any]:
    """Write noise.jsonl and summary.json. Return the summary."""
    margin = np.array([r.margin for r in ranked])
    soft = np.array([r.judgement.probability for r in ranked])
    weight = np.array([r.judgement.weight for r in ranked])
    steepness = slope(np.concatenate([margin, -margin]), np.concatenate([weight * soft, weight * (1 - soft)]))
    labelled = labelled_margin(margin, soft)
    confidences = confidence(labelled, steepness)
    listed = [int(i) for i in np.argsort(labelled, kind="stable") if confidences[i] >= config.confidence]
    rows = [row_of(ranked[i], float(confidences[i])) for i in listed]
    summary = {
        "judgements": len(ranked),
        "not_ranked": not_ranked,
        "accuracy": float(np.mean(win(labelled))),
        "slope": steepness,
        "backwards": int(np.sum(labelled < 0)),
        "surest": float(confidences.max()),
        "listed": len(rows),
    }
    write_rows(Path(config.out) / "noise.jsonl", rows)
    write_json(Path(config.out) / "summary.json", summary)
    return summary


def row_of(ranked: RankedJudgement, confidence: float) -> dict[str, Any]:
    """Return a line of noise.jsonl."""
    group, j = ranked.group, ranked.judgement
    better, worse = (j.better, j.worse) if j.probability >= 0.5 else (j.worse, j.better)
    return {
        "origin": group.origin,
        "fold": ranked.fold,
        "margin": ranked.margin,
        "confidence": confidence,
        "prompt": shortened(content(group.prompt)[::-1])[::-1],  # the end of a prompt tells more than its beginning
        "chosen": shortened(content(group.responses[better])),
        "rejected": shortened(content(group.responses[worse])),
    }


def shortened(text: str) -> str:
    """Return the first MAX_CHARACTERS of a text."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def summary_lines(config: NoiseConfig, summary: dict[str, Any]) -> list[str]:
    """Return the summary in words."""
    lines = [
        f"{summary['judgements']} judgements ranked by models not trained on them: accuracy {summary['accuracy']:.3f}, "
        f"{summary['backwards']} ranked backwards, {summary['listed']} with confidence {config.confidence:g} or more"
    ]
    if not summary["slope"]:
        lines.append("the models rank no better than chance, so no label is reported as wrong")
    elif not summary["listed"]:
        lines.append(f"the highest confidence is {summary['surest']:.3f}; to list pairs, set `confidence` below that")
    return lines
