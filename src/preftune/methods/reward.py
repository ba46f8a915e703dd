"""Reward models: a language model with a scalar head, trained on judgements with the Bradley-Terry likelihood."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune import stop
from preftune.config.schema import RewardConfig
from preftune.data.derive import derived
from preftune.data.loss_items import as_pairs
from preftune.data.subset import subset
from preftune.lifecycle.advise import advise, advise_on_pairs
from preftune.lifecycle.before_first_step import before_first_step
from preftune.lifecycle.context import within_context
from preftune.lifecycle.distribute import distributed
from preftune.lifecycle.drawn_pairs import draw_pairs, score_final, score_pairs
from preftune.lifecycle.finish import evaluating, finish_run, running, trained
from preftune.lifecycle.plan import plan_run, print_run_plan, sized
from preftune.lifecycle.start import load_policy_and_data, open_run, prepare_training, start_run
from preftune.lifecycle.stream import streamed
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective, Term
from preftune.losses.reward import bradley_terry
from preftune.model.scalar import require_padding, reward_logps, with_reward_slot
from preftune.ranks.group import on_first
from preftune.scoring import score_responses
from preftune.train.display import Display
from preftune.train.loop import evaluates, fit
from preftune.train.run import Run
from preftune.types import TokenGroup

SCALE_GROUPS = 1000  # groups used to estimate mean and standard deviation of the rewards
INPUTS = ("reward", "probability", "margin")


def run(
    config: RewardConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
) -> Path:
    """Train, and return the folder of the reward model, which AutoModelForSequenceClassification can load.

    `model` and `tokenizer` may be objects in memory; the model must be a sequence classifier with one label.
    """
    objective = Objective((Term("bradley_terry", bradley_terry, INPUTS, "pairs", {"centre": config.centre}),))
    with before_first_step(model):
        config = within_context(config, display, model)
        start = start_run(config, scalar=True, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run)
        if start.is_finished:
            return start.final
        policy, data = load_policy_and_data(start, config)
        require_padding(policy.model, policy.tokenizer)
        groups, held_out = reward_groups(data.train), reward_groups(data.held_out)
        task = ResponseTask(policy.scorer, None, objective, groups, held_out, policy.budget, is_reward_model=True)
        plan = plan_run(start, config, policy, task)
        if dry_run:
            return print_run_plan(start, config, plan)
        run = open_run(start, policy, data, plan.sources)
        advise_on_pairs(run, groups)
        task, steps = distributed(sized(plan, config, policy, run.tokens), policy), plan.steps
        visited = subset(groups, steps.visited)
        drawn = draw_pairs(config.report_pairs, task, visited, len(steps), config.train, policy.tokenizer)
        weights, optimizer = prepare_training(run, config, policy.model, policy.precise, len(steps))
        task, order = streamed(start, config, policy, run, task, steps, reward_groups)
    with running(run, policy, "train", len(steps)):
        evaluations = fit(
            task, order, run.start, weights, optimizer, config.optim, config.train, run, drawn.steps if drawn else ()
        )
        for step, task in trained(run, evaluations):
            with evaluating(run, step, task.held_out, drawn):
                on_first(partial(score_pairs, task, drawn, run, step), policy.shards > 1)
                if not evaluates(step, len(steps), config.train):
                    continue
                metrics = task.evaluate()
            run.log_evaluation(step, metrics)
            advise(run, step)
        with stop.interruptible():
            on_first(partial(score_final, task, drawn, run), policy.shards > 1)
            task = replace(task, groups=groups)
            policy.model.config.reward_scale = measured_scale(task, run) if config.normalise else None
    file = shlex.quote(config.data.eval) if isinstance(config.data.eval, str) else "DATA"
    return finish_run(run, policy, f"preftune score --reward FINAL --data {file}", merged=True)


def reward_groups(groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
    """Return the groups as preference pairs, with one more token per response, where its reward is read."""
    return derived(as_pairs(groups, "reward"), "reward", _reward_groups)


def _reward_groups(groups: Sequence[TokenGroup]) -> Iterator[TokenGroup]:
    for group in groups:
        yield from with_reward_slot([replace(group, labels=(), ranks=())])


@torch.no_grad()
def measured_scale(task: ResponseTask, run: Run) -> dict[str, float] | None:
    """Return mean and standard deviation of the rewards of up to about SCALE_GROUPS training groups.

    If all rewards are the same, print a message and return None.
    """
    groups = task.groups[:: 1 + len(task.groups) // SCALE_GROUPS]
    rewards = score_responses(partial(reward_logps, task.scorer), groups, task.scorer.device, task.budget)
    values = np.concatenate(rewards)
    mean, std = float(values.mean()), float(values.std())
    if std > 0:
        return {"mean": mean, "std": std}
    run.display.say(f"rewards are not normalised: all training responses have the reward {mean:g}")
    return None
