"""Supervised fine-tuning (SFT) on demonstrations or on the preferred responses of preference data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from preftune.config.schema import SFTConfig
from preftune.data.derive import derived
from preftune.data.loss_items import require_columns
from preftune.data.subset import subset
from preftune.lifecycle.advise import advise
from preftune.lifecycle.before_first_step import before_first_step
from preftune.lifecycle.context import within_context
from preftune.lifecycle.distribute import distributed
from preftune.lifecycle.finish import evaluating, finish_run, running, trained
from preftune.lifecycle.monitor import Monitor, monitor_of, save_responses
from preftune.lifecycle.plan import plan_run, print_run_plan, sized
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.start import load_policy_and_data, open_run, prepare_training, start_run
from preftune.lifecycle.stream import streamed
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective, Term
from preftune.losses.supervised import sft as sft_loss
from preftune.model.generate import Sampling
from preftune.model.reference_cache import response_keys
from preftune.ranks.group import on_first
from preftune.train.display import Display
from preftune.train.loop import fit
from preftune.types import TokenGroup

TOKENS = 128  # most tokens of a response that is sampled for the report
OBJECTIVE = Objective((Term("sft", sft_loss, ("policy",), "tokens", {}),))


def run(
    config: SFTConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
) -> Path:
    """Train, and return the folder of the tuned model. `model` and `tokenizer` may be objects in memory."""
    with before_first_step(model):
        config = within_context(config, display, model)
        start = start_run(config, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run)
        if start.is_finished:
            return start.final
        policy, data = load_policy_and_data(start, config)
        groups, held_out = preferred(data.train), preferred(data.held_out)
        task = ResponseTask(policy.scorer, None, OBJECTIVE, groups, held_out, policy.budget)
        plan = plan_run(start, config, policy, task)
        if dry_run:
            return print_run_plan(start, config, plan)
        run = open_run(start, policy, data, plan.sources)
        task, steps = distributed(sized(plan, config, policy, run.tokens), policy), plan.steps
        monitor = prompts_to_sample(config, task.held_out or subset(groups, steps.visited), policy)
        weights, optimizer = prepare_training(run, config, policy.model, policy.precise, len(steps))
        task, order = streamed(start, config, policy, run, task, steps, preferred)
    with running(run, policy, "train", len(steps)):
        evaluations = fit(task, order, run.start, weights, optimizer, config.optim, config.train, run)
        for step, task in trained(run, evaluations):
            with evaluating(run, step, task.held_out, monitor):
                on_first(partial(save_responses, task, monitor, run, step), policy.shards > 1)
                metrics = task.evaluate()
            run.log_evaluation(step, metrics)
            advise(run, step)
    return finish_run(run, policy, "preftune dpo CONFIG.yaml model.path=FINAL")


def prompts_to_sample(config: SFTConfig, groups: Sequence[TokenGroup], policy: Policy) -> Monitor | None:
    """Return the prompts that the policy responds to for the report; None if there are none."""
    if not config.samples:
        return None
    monitor, _ = monitor_of(config.samples, Sampling(1, TOKENS, seed=config.train.seed), groups, policy)
    prompts = [group for group in monitor.groups if len(group.prompt_ids)]  # plain texts have no prompt
    return replace(monitor, groups=prompts) if prompts else None


def preferred(groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
    """Return one group per response to train on: demonstrations, judged responses that won and never lost (each once
    per prompt), and responses with a positive label."""
    require_columns(groups, "sft", frozenset(), weighted=False, log_margin=False)
    return derived(groups, "preferred", _preferred)


def _preferred(groups: Sequence[TokenGroup]) -> Iterator[TokenGroup]:
    seen = set[bytes]()
    for group in groups:
        better, worse = {j.better for j in group.judgements}, {j.worse for j in group.judgements}
        for index, response in enumerate(response_keys(group)):
            good = index in better - worse if group.judgements else not group.labels or group.labels[index] > 0
            if not good:
                continue
            if group.judgements:
                key = response[:16]
                if key in seen:
                    continue
                seen.add(key)
            yield group.with_only([index], judgements=(), labels=(), ranks=())
