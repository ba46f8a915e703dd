"""Preference training with any of the losses: DPO and its relatives, unpaired and list-wise ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.config.schema import DPOConfig
from preftune.errors import ConfigError
from preftune.lifecycle.finish import finish_run, running
from preftune.lifecycle.guard import before_first_step
from preftune.lifecycle.monitor import advise, drift, monitored, watch
from preftune.lifecycle.plan import plan_run, print_run_plan, sized
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.start import attach_optimizer, load_run, open_run, start_run
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective
from preftune.methods.objective import bind_objective, shape_for
from preftune.methods.reference import make_reference, prove_start, reference_kind
from preftune.model import load
from preftune.train.display import Display
from preftune.train.loop import fit
from preftune.train.optim import Weights


def run(
    config: DPOConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
    moment: str | None = None,
) -> Path:
    """Train and return the folder of the tuned model. `model` and `tokenizer` may be objects in memory.

    `moment` is the date that a chat template writes, in ISO format. None: when the run began.
    """
    objective = bind_objective(config.terms)
    kind = reference_kind(config, objective)
    if config.reference.path:
        load.locate(config.reference.path, "reference.path")
    with before_first_step(model):
        start = start_run(config, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run, moment=moment)
        if start.is_finished:
            return start.final
        policy, data = load_run(start, config)
        require_statistics(objective, policy)
        groups, held_out = shape_for(objective, data.train), shape_for(objective, data.held_out)
        task = ResponseTask(policy.scorer, None, objective, groups, held_out, policy.budget)
        plan = plan_run(start, config, policy, task, second_model=kind == "frozen")
        if dry_run:
            watched, _ = watch(plan.task, config, policy, plan.task.groups)
            return print_run_plan(start, config, plan, kind, watched)
        run = open_run(start, policy, data)
        task, steps = sized(plan, config, policy, run.tokens), plan.steps
        weights = Weights(policy.model, policy.precise)
        visited = [task.groups[i] for i in sorted({i for step in steps for i in step.members})]
        scored = [*visited, *task.held_out]  # a short run does not score all of a large data set
        reference = make_reference(kind, config.reference, policy, scored, run.display, config.model.compile)
        task = replace(task, reference=reference)
        if reference and not config.reference.path and run.start == 0:
            run.display.say(prove_start(task, [task.groups[i] for i in steps[0].members]))
            task = replace(task, at_start=True)
        watched = monitored(task, config, policy, visited, run, in_memory=model is not None)
        optimizer = attach_optimizer(run, config, weights, len(steps))
    with running(run, policy, "train", len(steps)):
        for step, task in fit(task, steps, run.start, weights, optimizer, config.optim, config.train, run):
            run.evaluation(step, {**drift(task, watched, run.display.say), **task.evaluate()})
            if watched:
                advise(run, step)
    return finish_run(run, policy, len(steps))


def require_statistics(objective: Objective, policy: Policy) -> None:
    """Raises ConfigError if the loss needs whole distributions of a model whose head is not understood."""
    if objective.statistics and policy.scorer.head is None:
        raise ConfigError(
            f"{objective.terms[0].name!r} needs {', '.join(sorted(objective.statistics))} over the whole vocabulary",
            where="loss.name",
            why="this model's head is neither linear nor scaled nor softcapped, so only its log-probs are known",
            fix="use a loss that needs log-probs only, such as sigmoid",
        )
