"""Plan a run: its optimizer steps, the size of its micro-batches, and the estimates that a dry run prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.config.load import dump
from preftune.config.sampling import PPOConfig
from preftune.config.schema import RunConfig, TunedConfig
from preftune.data.shapes import Shapes
from preftune.data.steps import Steps, training_steps
from preftune.lifecycle import estimate
from preftune.lifecycle.data import require_groups
from preftune.lifecycle.mixture_plan import SourceUse, mixed_steps, mixture_lines, names_in
from preftune.lifecycle.monitor import Monitor
from preftune.lifecycle.policy import Policy, device_of
from preftune.lifecycle.start import Start
from preftune.lifecycle.task import ResponseTask
from preftune.model.logprobs import model_size
from preftune.ranks import group
from preftune.train.display import Display
from preftune.train.optim import warmup_steps


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The optimizer steps of a run, their memory, and the task with micro-batches of the planned size.

    sources   how the run uses each source of a mixture; empty for a single source
    """

    steps: Steps
    footprint: estimate.Footprint
    task: ResponseTask
    sources: tuple[SourceUse, ...] = ()


def plan_run(
    start: Start, config: RunConfig, policy: Policy, task: ResponseTask, second_model: bool = False
) -> RunPlan:
    """Plan the steps of a run and print a summary. `second_model`: memory also holds a frozen reference."""
    require_groups(task.groups, start.text.accounts[0].source)
    shapes, train = Shapes.of(task.groups), config.train
    uses: tuple[SourceUse, ...] = ()
    if config.data.stream:  # as many steps as the run will have, with the groups of the sample
        epochs = -(-(train.max_steps or 1) * config.batch.pairs // max(1, int(shapes.size_G.sum()))) + 1
        steps = training_steps(shapes.size_G, config.batch.pairs, train.seed, epochs, train.max_steps)
    else:
        steps, uses = mixed_steps(config.data, shapes, config.batch.pairs, train.seed, train.epochs, train.max_steps)
    names = start.text.names
    sources, held_out_sources = names_in(task.groups, names), names_in(task.held_out, names)
    task = replace(task, sources=sources, held_out_sources=held_out_sources)
    footprint = estimate.measure_footprint(policy.scorer, config, second_model, task.groups, policy.budget.layout)
    plan = RunPlan(steps, footprint, task, uses)
    plan = replace(plan, task=sized(plan, config, policy))
    describe(config, policy, plan, start.display)
    return plan


def set_micro_batch_size(
    policy: Policy,
    config: RunConfig | PPOConfig,
    footprint: estimate.Footprint,
    checkpoint_tokens: int | None = None,
) -> None:
    """Set the policy's budget to `batch.tokens` token slots; `auto` uses as many as fit in memory.

    `checkpoint_tokens` is the size that a resumed run had when it was saved. It is never exceeded: a larger size would
    change results in the last digits, or run out of memory again.
    """
    tokens = config.batch.tokens
    if tokens == "auto":
        width = policy.model.config.get_text_config().hidden_size
        device = policy.scorer.device
        if policy.shards > 1:  # its model is still on the CPU
            device = device_of(None)
            footprint = estimate.of_shards(footprint, policy.model, policy.shards, device)
        settings = device, width, policy.model.dtype
        tokens = checkpoint_tokens or int(group.all_min(estimate.choose_tokens(footprint, *settings)))
    policy.budget = replace(policy.budget, tokens=min(tokens, checkpoint_tokens or tokens))


def sized(plan: RunPlan, config: RunConfig, policy: Policy, checkpoint_tokens: int | None = None) -> ResponseTask:
    """Return the task with the micro-batches of `set_micro_batch_size`."""
    set_micro_batch_size(policy, config, plan.footprint, checkpoint_tokens)
    return replace(plan.task, budget=policy.budget)


def describe(config: RunConfig, policy: Policy, plan: RunPlan, display: Display) -> None:
    """Print the model, the data and the number of steps."""
    task, steps = plan.task, len(plan.steps)
    parameters, trained = model_size(policy.model)
    dtype = str(next(iter(policy.model.parameters())).dtype).removeprefix("torch.")
    place = f"{dtype} on {policy.scorer.device}, layout {policy.budget.layout}"
    display.say(f"model: {parameters:,} parameters, {trained:,} trained, {place}")
    for note in policy.notes:
        display.say(note)
    shapes = Shapes.of(task.groups)
    tokens, items = int(shapes.tokens_G.sum()), int(shapes.size_G.sum())
    unit = "judgements" if shapes.judgements_G.any() else "responses"
    kind = "data: streamed; the first rows have" if config.data.stream else "data:"
    display.say(
        f"{kind} {len(task.groups)} groups with {items} {unit} and {tokens:,} tokens; "
        f"{len(task.held_out)} groups held out; {steps} step{'s' * (steps != 1)}"
    )
    for line in mixture_lines(plan.sources):
        display.say(line)
    display.say(f"optimizer: {config.optim.name}, peak learning rate {config.optim.lr:g}, {config.optim.schedule}")
    warmup = warmup_steps(config.optim.warmup, steps)
    if warmup >= steps:
        reason = f"optim.warmup is {warmup} of {steps} steps, so the learning rate never reaches optim.lr"
        display.say(f"note: {reason}; set optim.warmup=0, train longer, or take smaller steps with batch.pairs")
    epochs, limit = config.train.epochs, config.train.max_steps
    if limit and steps < limit:
        display.say(f"note: train.max_steps={limit} is not reached, train.epochs={epochs} ends after {steps} steps")


def print_run_plan(
    start: Start, config: RunConfig, plan: RunPlan, reference: str = "none", monitor: Monitor | None = None
) -> Path:
    """Print the estimates of memory and time, and return the run folder. `reference` is the kind of reference."""
    lines, fits = estimate.memory_lines(plan.footprint, plan.task, plan.steps)
    if fits:
        lines += estimate.time_lines(plan.task, plan.steps, config, reference, monitor, start.began)
    return print_plan(config, lines, start.display)


def print_plan(config: TunedConfig, lines: Sequence[str], display: Display) -> Path:
    """Print the plan and the resolved config of a dry run, and return the run folder, which is not created."""
    for line in lines:
        display.say(line)
    display.say(dump(config))
    display.say(
        f"dry run: nothing was trained or written. Next: rerun without --dry-run; the run folder will be {config.out}"
    )
    return Path(config.out)
