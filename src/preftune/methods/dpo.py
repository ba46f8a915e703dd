"""Preference training with DPO or a different loss on pairs, labelled responses or rankings."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from preftune import stop
from preftune.config.schema import DPOConfig
from preftune.data.subset import joined, subset
from preftune.errors import ConfigError
from preftune.lifecycle.advise import advise, advise_on_pairs
from preftune.lifecycle.before_first_step import before_first_step
from preftune.lifecycle.context import within_context
from preftune.lifecycle.distribute import distributed
from preftune.lifecycle.drawn_pairs import draw_pairs, score_final, score_pairs
from preftune.lifecycle.finish import evaluating, finish_run, running, trained
from preftune.lifecycle.monitor import drift, make_monitor, start_monitor
from preftune.lifecycle.plan import plan_run, print_run_plan, sized
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.start import load_policy_and_data, open_run, prepare_training, start_run
from preftune.lifecycle.stream import streamed
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective
from preftune.methods.objective import bind_objective, shape_for
from preftune.methods.reference import check_start, make_reference, reference_kind
from preftune.model import load
from preftune.model.locate import with_quant
from preftune.ranks.group import on_first
from preftune.train.display import Display
from preftune.train.loop import evaluates, fit


def run(
    config: DPOConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
    moment: str | None = None,
) -> Path:
    """Train, and return the folder of the tuned model. `model` and `tokenizer` may be objects in memory.

    `moment` is the date for the chat template, in ISO format; None: now, or the date of the run that is resumed.
    """
    objective = bind_objective(config.terms)
    kind = reference_kind(config, objective)
    if config.reference.path:
        load.locate(config.reference.path, "reference.path")
    with before_first_step(model):
        config = within_context(config, display, model)
        start = start_run(config, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run, moment=moment)
        if start.is_finished:
            return start.final
        policy, data = load_policy_and_data(start, config)
        require_statistics(objective, policy)
        groups, held_out = shape_for(objective, data.train), shape_for(objective, data.held_out)
        task = ResponseTask(policy.scorer, None, objective, groups, held_out, policy.budget)
        plan = plan_run(start, config, policy, task, second_model=kind == "frozen")
        if dry_run:
            monitor, _ = make_monitor(plan.task, config, policy, plan.task.groups)
            return print_run_plan(start, config, plan, kind, monitor)
        run = open_run(start, policy, data, plan.sources)
        advise_on_pairs(run, groups)
        task, steps = distributed(sized(plan, config, policy, run.tokens), policy), plan.steps
        visited = subset(task.groups, steps.visited)  # a short run uses only a part of a large data set
        reference = make_reference(kind, config, policy, joined(visited, task.held_out), run.display)
        task = replace(task, reference=reference)
        if reference and not config.reference.path and run.start == 0:
            run.display.say(check_start(task, [task.groups[i] for i in steps[0].members]))
            task = replace(task, at_start=True)
        drawn = draw_pairs(config.report_pairs, task, visited, len(steps), config.train, policy.tokenizer)
        monitor = start_monitor(task, config, policy, visited, run, in_memory=model is not None)
        weights, optimizer = prepare_training(run, config, policy.model, policy.precise, len(steps))
        task, order = streamed(start, config, policy, run, task, steps, partial(shape_for, objective))
    with running(run, policy, "train", len(steps)):
        evaluations = fit(
            task, order, run.start, weights, optimizer, config.optim, config.train, run, drawn.steps if drawn else ()
        )
        for step, task in trained(run, evaluations):
            with evaluating(run, step, task.held_out, monitor, drawn):
                on_first(partial(score_pairs, task, drawn, run, step), policy.shards > 1)
                if not evaluates(step, len(steps), config.train):
                    continue
                shift = on_first(partial(drift, task, monitor, run, step), policy.shards > 1)
                metrics = {**shift, **task.evaluate()}
            run.log_evaluation(step, metrics)
            advise(run, step)
        with stop.interruptible():
            on_first(partial(score_final, task, drawn, run), policy.shards > 1)
    base = with_quant(config.model.path, config.model.quant) if model is None else "MODEL"
    file = shlex.quote(config.data.eval) if isinstance(config.data.eval, str) else "DATA"
    return finish_run(run, policy, f"preftune score --policy FINAL --reference {base} --data {file}")


def require_statistics(objective: Objective, policy: Policy) -> None:
    """Raise ConfigError if the loss needs whole distributions, which are not available for this model."""
    if objective.statistics and policy.scorer.head is None:
        raise ConfigError(
            f"the loss {objective.terms[0].name!r} needs {', '.join(sorted(objective.statistics))} over the whole "
            "vocabulary, which is not available for this model",
            where="loss.name",
            why="the model's output layer is not a linear map with an optional scale or softcap",
            fix="use a loss that only needs log-probs, such as sigmoid",
        )
