"""Reward models: a scalar head on a language model's body, fitted to judgements by the Bradley-Terry likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.config.schema import RewardConfig
from preftune.data.items import as_pairs
from preftune.lifecycle.finish import finish_run, running
from preftune.lifecycle.guard import before_first_step
from preftune.lifecycle.plan import plan_run, print_run_plan, sized
from preftune.lifecycle.policy import REWARD_MODEL
from preftune.lifecycle.start import attach_optimizer, load_run, open_run, start_run
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective, Term
from preftune.losses.reward import bradley_terry
from preftune.model.scalar import readable, require_padding, reward_logps
from preftune.scoring import score_responses
from preftune.train.display import Display
from preftune.train.loop import fit
from preftune.train.optim import Weights
from preftune.train.run import Run
from preftune.types import TokenGroup

SCALE_GROUPS = 1000  # enough for a mean and a standard deviation
INPUTS = ("reward", "probability", "margin")


def run(
    config: RewardConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
) -> Path:
    """Train and return the folder of the reward model, which AutoModelForSequenceClassification loads.

    `model` and `tokenizer` may be given in memory: a sequence classifier with one label.
    """
    objective = Objective((Term("bradley_terry", bradley_terry, INPUTS, "pairs", {"centre": config.centre}),))
    with before_first_step(model):
        start = start_run(config, REWARD_MODEL, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run)
        if start.is_finished:
            return start.final
        policy, data = load_run(start, config)
        require_padding(policy.model, policy.tokenizer)
        groups, held_out = judged(data.train), judged(data.held_out)
        task = ResponseTask(policy.scorer, None, objective, groups, held_out, policy.budget, reward_logps)
        plan = plan_run(start, config, policy, task)
        if dry_run:
            return print_run_plan(start, config, plan)
        run = open_run(start, policy, data)
        task, steps = sized(plan, config, policy, run.tokens), plan.steps
        weights = Weights(policy.model, policy.precise)
        optimizer = attach_optimizer(run, config, weights, len(steps))
    with running(run, policy, "train", len(steps)):
        for step, task in fit(task, steps, run.start, weights, optimizer, config.optim, config.train, run):
            run.evaluation(step, task.evaluate())
        policy.model.config.reward_scale = measured_scale(task, run) if config.normalise else None
    return finish_run(run, policy, len(steps), merged=True)


def judged(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Groups with judgements, with a slot to read each reward at."""
    if not groups:
        return []
    return readable([replace(group, labels=(), ranks=()) for group in as_pairs(groups, "reward")])


@torch.no_grad()
def measured_scale(task: ResponseTask, run: Run) -> dict[str, float] | None:
    """Return mean and standard deviation of the rewards of the training responses, or of every k-th group of many.

    Returns None, and reports it, if all rewards are the same.
    """
    groups = task.groups[:: 1 + len(task.groups) // SCALE_GROUPS]
    rewards = score_responses(partial(task.ask, task.scorer), groups, task.scorer.device, task.budget)
    values = np.concatenate(rewards)
    mean, std = float(values.mean()), float(values.std())
    if std > 0:
        return {"mean": mean, "std": std}
    run.display.say(f"all training responses have the reward {mean:g}: nothing was learnt, so nothing is normalised")
    return None
