"""preftune data noise: judgements that models which have not seen them rank backwards, the surest first.

    fold-N/train.json     the groups of all other folds
    fold-N/run/           a DPO or reward model run on them
    fold-N/margins.json   the margins of this fold's judgements under that model
    noise.jsonl           the judgements ranked backwards with `confidence` or more
    summary.json          how good the rankers are, and counts

Every piece is finished or not there, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import load_renderer
from preftune.config.schema import DPOConfig, NoiseConfig, RewardConfig
from preftune.data.convert import group_rows
from preftune.data.groups import folds, tokenize
from preftune.data.items import require_judged
from preftune.data.layout import Budget
from preftune.errors import ConfigError, DataError
from preftune.files import write_json, write_rows
from preftune.formats.account import Account, format_origins
from preftune.formulas import implicit_reward, win
from preftune.lifecycle.data import limits_of, read_data
from preftune.lifecycle.packing_probe import admit, state_values
from preftune.lifecycle.plan import print_plan
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.measures.label_noise import Floats, confidence, slope
from preftune.methods import dpo, reward
from preftune.methods.objective import bind_objective
from preftune.methods.reference import reference_kind
from preftune.model import load
from preftune.model.logprobs import Scorer, logps
from preftune.model.scalar import load_scalar, readable, reward_logps, scalar_scorer
from preftune.scoring import SLOTS, score_responses
from preftune.train.display import Display
from preftune.train.run import Run, run_identity
from preftune.types import Judgement, PreferenceGroup, TokenGroup, content, plain

CENTRE = 0.01  # keeps rewards near 0 without a say in the margins
SHOWN = 200  # characters of a text in noise.jsonl


@dataclass(frozen=True, slots=True)
class Held:
    """A judgement of a held-out group, and the margin that its fold's model gives it."""

    group: PreferenceGroup
    judgement: Judgement
    fold: int
    margin: float


def run(config: NoiseConfig, *, display: Display | None = None, dry_run: bool = False) -> Path:
    """Train and rank fold by fold; write and return noise.jsonl."""
    display, out = display or Display(), Path(config.out)
    if config.data.eval is not None:
        raise ConfigError(
            "every fold is held out once", where="data.eval", fix="leave it out; `folds` sets their number"
        )
    load.locate(config.model.path)
    if config.ranker == "dpo":
        require_ranker(config)
    text = read_data(config.data)
    identity = run_identity(config.model_dump(mode="json"), text.fingerprint)
    Run.check(out, identity, type(config))
    for group in text.train:
        require_judged(group, "noise")
    parts = folds(text.train, config.folds)
    for line in text.accounts[0].lines():
        display.say(line)
    display.say(
        f"{config.folds} folds of {', '.join(str(len(part)) for part in parts)} groups, no prompt in two of them"
    )
    if dry_run:
        return print_plan(config, [], display)
    log = Run.open(out, identity, display, type(config))
    held = []
    for number, part in enumerate(parts, start=1):
        others = [group for other in parts if other is not part for group in other]
        held += margins_of_fold(config, out / f"fold-{number}", number, others, part, display)
    lost = sum(len(group.judgements) for group in text.train) - len(held)
    if not held:
        raise DataError("no judgement is left to rank", where=str(config.data.train))
    path, summary = report(config, held, lost, out)
    log.note(finished=True, **summary)
    for line in in_words(config, summary):
        display.say(line)
    display.say(f"done: {path}")
    return path


def require_ranker(config: NoiseConfig) -> None:
    """Raises ConfigError for a loss whose policies have no implicit reward, or a reference that cannot be had."""
    objective, where = bind_objective(config.terms), f"loss.name {config.terms[0].name}"
    if objective.items != "pairs" or not objective.uses_reference:
        raise ConfigError(
            "ranks pairs by no reward against a reference", where=where, fix="use sigmoid, ipo or another such loss"
        )
    reference_kind(_dpo(config, Path(config.out)), objective)
    if config.reference.path:
        load.locate(config.reference.path, "reference.path")


def margins_of_fold(
    config: NoiseConfig,
    folder: Path,
    number: int,
    others: Sequence[PreferenceGroup],
    held_out: Sequence[PreferenceGroup],
    display: Display,
) -> list[Held]:
    """The held-out judgements with their margins, read from the folder if they are there."""
    path = folder / "margins.json"
    if not path.is_file():
        display.say(f"fold {number} of {config.folds}: {len(others)} groups to learn from, {len(held_out)} to rank")
        write_json(folder / "train.json", list(group_rows(others)))
        final = trained(config, folder, display)
        write_json(path, ranked(config, final, held_out, display))
    return [
        Held(held_out[row["group"]], Judgement(**row["judgement"]), number, row["margin"])
        for row in json.loads(path.read_text())
    ]


def trained(config: NoiseConfig, folder: Path, display: Display) -> Path:
    """The model of a fold, trained on its train.json by the method that the config names."""
    if config.ranker == "reward":
        return reward.run(RewardConfig(**_common(config, folder), centre=CENTRE, normalise=False), display=display)
    return dpo.run(_dpo(config, folder), display=display)


def _dpo(config: NoiseConfig, folder: Path) -> DPOConfig:
    return DPOConfig(**_common(config, folder), loss=config.loss, reference=config.reference, monitor=None)


def _common(config: NoiseConfig, folder: Path) -> dict[str, Any]:
    data = {"train": str(folder / "train.json"), "format": "groups", "ignore": []}
    sections = {name: getattr(config, name) for name in ("model", "optim", "batch", "train", "lora", "track")}
    return {**sections, "data": config.data.model_copy(update=data), "out": str(folder / "run")}


@torch.no_grad()
def ranked(
    config: NoiseConfig, final: Path, held_out: Sequence[PreferenceGroup], display: Display
) -> list[dict[str, Any]]:
    """The margin of every judgement: which group, the judgement, and how much more reward its better response has."""
    source = load.locate(str(final))
    renderer = load_renderer(config.data, source, moment=load.chat_record(source).get("moment"))
    limits = limits_of(config.data)
    account = Account("held out")
    numbered = [replace(group, origin=str(place)) for place, group in enumerate(held_out)]
    groups = tokenize(numbered, renderer, limits, account)
    for reason, at in account.dropped.items():
        display.say(f"not ranked {len(at)} ({format_origins([held_out[int(place)].origin for place in at])}): {reason}")
    dtype, device = compute_dtype(config.model), device_of(None)
    if config.ranker == "reward":
        scorer = scalar_scorer(load_scalar(source, dtype).to(device))
        layout, _ = admit(scorer, "auto", state_values)
        rewards = score_responses(partial(reward_logps, scorer), readable(groups), scorer.device, Budget(layout, SLOTS))
    else:
        base = load.locate(config.reference.path or config.model.path)
        policy, reference = (logps_of(Scorer.of(load.load_model(s, dtype).to(device)), groups) for s in (source, base))
        rewards = [implicit_reward(p, r, beta=1.0) for p, r in zip(policy, reference, strict=True)]
    return [
        {"group": int(group.origin), "judgement": plain(j), "margin": float(values[j.better] - values[j.worse])}
        for group, values in zip(groups, rewards, strict=True)
        for j in group.judgements
    ]


def logps_of(scorer: Scorer, groups: Sequence[TokenGroup]) -> list[Floats]:
    """The summed log-probs of each group's responses, in the fastest layout that the model allows."""
    layout, _ = admit(scorer, "auto")
    return score_responses(partial(logps, scorer), groups, scorer.device, Budget(layout, SLOTS))


def report(config: NoiseConfig, held: Sequence[Held], lost: int, out: Path) -> tuple[Path, dict[str, Any]]:
    """Write noise.jsonl and summary.json."""
    margin = np.array([one.margin for one in held])
    soft = np.array([one.judgement.probability for one in held])
    weight = np.array([one.judgement.weight for one in held])
    steepness = slope(np.concatenate([margin, -margin]), np.concatenate([weight * soft, weight * (1 - soft)]))
    turned = np.where(soft < 0.5, -margin, margin)  # the label says that `worse` is the better one
    sure = confidence(turned, steepness)
    listed = [int(i) for i in np.argsort(turned, kind="stable") if sure[i] >= config.confidence]
    rows = [row_of(held[i], float(sure[i])) for i in listed]
    summary = {
        "judgements": len(held),
        "not_ranked": lost,
        "accuracy": float(np.mean(win(turned))),
        "slope": steepness,
        "backwards": int(np.sum(turned < 0)),
        "surest": float(sure.max()),
        "listed": len(rows),
    }
    path = out / "noise.jsonl"
    write_rows(path, rows)
    write_json(out / "summary.json", summary)
    return path, summary


def row_of(one: Held, sure: float) -> dict[str, Any]:
    """A line of noise.jsonl."""
    group, j = one.group, one.judgement
    texts = {"prompt": group.prompt, "chosen": group.responses[j.better], "rejected": group.responses[j.worse]}
    if j.probability < 0.5:
        texts["chosen"], texts["rejected"] = texts["rejected"], texts["chosen"]
    return {
        "origin": group.origin,
        "fold": one.fold,
        "margin": one.margin,
        "confidence": sure,
        "prompt": brief(content(texts["prompt"])[::-1])[::-1],  # what comes right before the answer matters most
        "chosen": brief(content(texts["chosen"])),
        "rejected": brief(content(texts["rejected"])),
    }


def brief(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def in_words(config: NoiseConfig, found: dict[str, Any]) -> list[str]:
    """What came out."""
    lines = [
        f"{found['judgements']} judgements ranked by models that had not seen them: accuracy {found['accuracy']:.3f}, "
        f"{found['backwards']} backwards, {found['listed']} of them with confidence {config.confidence:g} or more"
    ]
    if not found["slope"]:
        lines.append("the models rank no better than chance: nothing can be said about any label")
    elif not found["listed"]:
        lines.append(f"the surest has {found['surest']:.3f}: a lower `confidence` lists more")
    return lines
