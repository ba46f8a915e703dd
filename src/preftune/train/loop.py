"""The training loop of SFT, preference and reward training, `fit`. The loop of PPO is in methods.ppo_loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar, cast

import torch

from preftune import stop
from preftune.config.schema import OptimConfig, TrainConfig
from preftune.data.layout import Budget
from preftune.data.steps import Step, size_of
from preftune.errors import ConfigError, NumericError, PreftuneError, Stopped
from preftune.model.memory import can_repeat, free_memory
from preftune.ranks import group as ranks
from preftune.ranks.shard import any_sharded, local
from preftune.ranks.work import fillers, own, slots, sum_gradients
from preftune.train.clock import Clock
from preftune.train.exchange import of_all_ranks
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, clip, lr_at, warmup_steps
from preftune.types import Batch, Judged, Logps, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class Measured:
    """The models' log-probs of a batch, and its judgements: the inputs of a loss.

    sources   the number of the source of each group
    """

    policy: Logps
    reference: Logps | None
    judged: Judged
    sources: tuple[int, ...] = ()


class Losses(Protocol):
    """What an update needs from a training method: how to make batches of groups, and the loss of a batch."""

    @property
    def joint(self) -> bool:
        """Whether the loss is a function of all micro-batches of a step together."""

    @property
    def budget(self) -> Budget:
        """Layout and size of micro-batches."""

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        """Return the groups as micro-batches, on the model's device."""

    def halved(self, batches: Sequence[Batch]) -> Self:
        """Return a copy with micro-batches half as large as `batches`. Raises ConfigError if that is impossible."""

    def count(self, batch: Batch) -> torch.Tensor:
        """Return the number of items (pairs, responses, ...) by which the loss sum of a batch is divided."""

    def loss_of(self, batch: Batch) -> LossOutput:
        """Run the models and return the loss of a batch, with metrics."""


class Task(Losses, Protocol):
    """What `fit` needs from a training method: its losses and the training data."""

    @property
    def groups(self) -> Sequence[TokenGroup]:
        """The training data."""

    def after_update(self) -> Self:
        """Return the task to use after an update of the policy."""

    def measure(self, batch: Batch) -> Measured:
        """Run the models on a batch, without the loss. Used if the loss depends on the whole step."""

    def objective(self, measured: Measured) -> LossOutput:
        """Return the loss of model outputs, with metrics."""


L = TypeVar("L", bound=Losses)
T = TypeVar("T", bound=Task)


class Log(Protocol):
    """What the loop reports to: metrics, checkpoints, stop requests."""

    @property
    def tally(self) -> Tally:
        """Metrics of steps that a stopped run completed but did not log."""

    @property
    def evaluation_due(self) -> bool:
        """Whether a stopped run completed its last step, but not the evaluation after it."""

    def log_train(self, step: int, metrics: dict[str, float]) -> None: ...

    def reached(self, step: int, tally: Tally, tokens: int, *, evaluated: bool) -> None:
        """Note what to save if the run is stopped before the next call. `evaluated`: no evaluation is due."""

    def planned(self, step: int, total: int) -> int:
        """Return the number of steps of the schedule that the learning rate of `step` follows, usually `total`."""

    def save(self, step: int, tally: Tally, tokens: int) -> None: ...

    def save_if_due(self, step: int, tally: Tally, tokens: int) -> None: ...

    def keep_last_state(self) -> None:
        """Save the last completed step, because the next one failed before it changed the weights."""

    def log_halved(self, step: int, tokens: int) -> None:
        """Report that memory ran out, and that micro-batches have at most `tokens` token slots from now on."""

    def stop_requested(self) -> bool: ...


def fit(  # noqa: PLR0913, PLR0917
    task: T,
    steps: Sequence[Step],
    start: int,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    train: TrainConfig,
    log: Log,
    also: Collection[int] = (),
) -> Iterator[tuple[int, T]]:
    """Do the optimizer steps `steps[start:]`. Yield the step number and the task whenever an evaluation is due, and
    after the steps `also`.

    `evaluates` says when evaluations are due. The time that the caller spends on them does not count as training time.
    Raises NumericError before an update that is not finite, Stopped after a step if the user requested it, and
    StopRequest within a step or an evaluation; `log.reached` was then called with the last completed step.
    """
    total, tally, clock = len(steps), log.tally, Clock()
    if start == 0 or log.evaluation_due:
        log.reached(start, tally, task.budget.tokens, evaluated=False)
        yield start, task
        clock.read()
    log.reached(start, tally, task.budget.tokens, evaluated=True)
    for step in steps[start:]:
        groups = [task.groups[i] for i in step.members]
        planned = log.planned(step.number, total)
        lr = lr_at(step.number, planned, optim.lr, optim.schedule, warmup_steps(optim.warmup, planned))
        try:
            task, metrics, grad_norm = update(
                task, groups, weights, optimizer, lr, optim.max_grad_norm, step.number, log
            )
        except PreftuneError as error:
            if ranks.world() == 1 or isinstance(error, NumericError):  # other errors may be those of one rank
                log.keep_last_state()
            raise
        task = task.after_update()
        tally.merge(metrics)
        clock.add(sum(map(size_of, groups)), sum(group.tokens for group in groups))

        if step.number % train.log_every == 0 or step.number in (1, total):
            rates, means = clock.read(), tally.over_ranks().means()
            log.log_train(step.number, {**means, "grad_norm": grad_norm, "lr": lr, "epoch": step.epoch, **rates})
            tally = Tally()
        with clock.paused():
            if step.number in also or evaluates(step.number, total, train):
                log.reached(step.number, tally, task.budget.tokens, evaluated=False)
                yield step.number, task
            log.reached(step.number, tally, task.budget.tokens, evaluated=True)
            if log.stop_requested() and step.number < total:
                log.save(step.number, tally, task.budget.tokens)
                stop.answered()
                raise stopped(step.number, total)
            log.save_if_due(step.number, tally, task.budget.tokens)


def evaluates(step: int, total: int, train: TrainConfig) -> bool:
    """Whether an evaluation is due: before the first step, every `train.eval_every` steps, and after the last step."""
    return step in (0, total) or bool(train.eval_every and step % train.eval_every == 0)


def stopped(step: int, total: int = 0) -> Stopped:
    """Return the exception for a run that the user stopped after `step` of `total`. Its checkpoint is saved."""
    if step == 0:
        return Stopped(
            "stopped before the first step; nothing was trained", fix="rerun the same command to start again"
        )
    return Stopped(
        f"stopped after step {step} of {total}; a checkpoint is saved", fix="rerun the same command to resume"
    )


def update(
    task: L,
    groups: Sequence[TokenGroup],
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_norm: float,
    step: int,
    log: Log,
) -> tuple[L, Tally, float]:
    """Update the weights once. Return the task (its micro-batches may be smaller now), metrics and gradient norm."""
    task, batches, metrics = _gradients(task, groups, weights, step, log)
    sum_gradients(weights.masters)
    grad_norm = float(clip(weights.gradients(), max_norm))
    if not math.isfinite(grad_norm):
        raise _not_finite(task, batches, weights, step, grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    weights.publish()
    weights.clear_gradients()
    return task, metrics, grad_norm


def _gradients(
    task: L, groups: Sequence[TokenGroup], weights: Weights, step: int, log: Log
) -> tuple[L, list[Batch], Tally]:
    """Compute the gradients of this rank's share of a step. Return the task, its micro-batches and the metrics.

    If memory runs out on a rank, halve the micro-batches of all ranks from this step on, clear partial gradients and
    start the step again.
    """
    while True:
        batches = task.micro_batches(own(groups, slots(task.budget.layout)))
        counts = [task.count(batch) for batch in batches]
        count = ranks.all_sum(
            torch.stack(counts).sum() if counts else torch.zeros((), device=weights.masters[0].device)
        )
        is_split, metrics = any_sharded(weights.masters), None
        extra = fillers(batches, groups, task.micro_batches, is_split)
        try:
            metrics = _accumulate(task, batches, count, extra)
        except (RuntimeError, MemoryError) as error:
            if not can_repeat(error):  # the other ranks of split weights wait for this one inside of their passes
                raise
        if not ranks.any_rank(metrics is None):
            assert metrics is not None
            return task, batches, metrics
        weights.clear_gradients()  # after the handler: the exception holds a reference to the memory
        task = _halved(task, batches, metrics is None)
        log.log_halved(step, task.budget.tokens)
        free_memory()


def _halved(task: L, batches: Sequence[Batch], exhausted: bool) -> L:
    """Return the task with smaller micro-batches, on all ranks. `exhausted`: memory ran out on this rank.

    Raises ConfigError if no rank can make its micro-batches smaller.
    """
    if ranks.world() == 1:
        return task.halved(batches)
    tokens, problem = math.inf, None
    try:
        tokens = task.halved(batches).budget.tokens if exhausted and batches else math.inf
    except ConfigError as error:
        problem = error
    tokens, problems = ranks.all_min(tokens), [error for error in ranks.gather(problem) if error]
    if tokens == math.inf:
        raise problems[0]
    smaller: L = replace(cast(Any, task), budget=replace(task.budget, tokens=int(tokens)))
    return smaller


def _accumulate(task: Losses, batches: Sequence[Batch], count: torch.Tensor, extra: Sequence[Batch] = ()) -> Tally:
    """Add up the gradients of  loss_sum / count  over all micro-batches, with the `count` of the whole step.

    `extra` batches are run without effect, see ranks.work.fillers.
    """
    if task.joint and (len(batches) > 1 or ranks.world() > 1):
        return _accumulate_jointly(cast(Task, task), batches, count, extra)
    tally = Tally()
    for batch in batches:
        stop.check()  # no weight has changed, so the step can be repeated
        out = task.loss_of(batch)
        (out.loss_sum / count).backward()
        tally.add_loss(out)
    for batch in extra:
        (task.loss_of(batch).loss_sum * 0.0).backward()
    return tally


def _accumulate_jointly(task: Task, batches: Sequence[Batch], count: torch.Tensor, extra: Sequence[Batch]) -> Tally:
    """Accumulate the gradients of a loss over the whole step: compute its gradient with respect to all log-probs,
    then backpropagate that into the model for each micro-batch in turn."""
    measured = _measured(task, [*batches, *extra])[: len(batches)]
    leaves = [_leaf(m.policy) for m in measured]
    parts = [replace(m, policy=leaf) for m, leaf in zip(measured, leaves, strict=True)]
    out = task.objective(join(of_all_ranks(parts, count.device)))
    if leaves:  # a rank may have no share of a small step
        (out.loss_sum / count).backward()
    for batch, leaf in zip(batches, leaves, strict=True):
        stop.check()
        policy = task.measure(batch).policy
        pairs = [(policy.sum_S, leaf.sum_S), (policy.token_N, leaf.token_N)]
        pairs += [(policy.extra[name], leaf.extra[name]) for name in leaf.extra]
        used = [(value, tensor.grad) for value, tensor in pairs if tensor.grad is not None and value.requires_grad]
        torch.autograd.backward([value for value, _ in used], [grad for _, grad in used])
    for batch in extra:
        (task.measure(batch).policy.token_N.sum() * 0.0).backward()
    tally = Tally()
    if ranks.first():  # every rank has computed the loss of the whole step
        tally.add_loss(out)
    return tally


def _measured(task: Task, batches: Sequence[Batch]) -> list[Measured]:
    """Run the models without gradients. Raises torch.OutOfMemoryError if memory ran out on any rank."""
    measured: list[Measured] = []
    exhausted = False
    try:
        with torch.no_grad():
            for batch in batches:
                stop.check()
                measured.append(task.measure(batch))
    except (RuntimeError, MemoryError) as error:
        if ranks.world() == 1 or not can_repeat(error):
            raise
        exhausted = True
    if ranks.any_rank(exhausted):
        raise torch.OutOfMemoryError("out of memory on a rank")
    return measured


def _leaf(policy: Logps) -> Logps:
    """Return a copy that is detached from the model, whose tensors collect gradients."""

    def detached(value: torch.Tensor) -> torch.Tensor:
        return value.detach().requires_grad_()

    extra = {name: detached(value) for name, value in policy.extra.items()}
    return Logps(detached(policy.token_N), detached(policy.sum_S), policy.length_S, extra)


def join(parts: Sequence[Measured]) -> Measured:
    """Concatenate the model outputs of several batches."""
    references = [part.reference for part in parts if part.reference is not None]
    return Measured(
        join_logps([part.policy for part in parts]),
        join_logps(references) if references else None,
        join_judged([part.judged for part in parts]),
        tuple(source for part in parts for source in part.sources),
    )


def join_logps(parts: Sequence[Logps]) -> Logps:
    """Concatenate the log-probs of several batches."""
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    return Logps(
        torch.cat([part.token_N for part in parts]),
        torch.cat([part.sum_S for part in parts]),
        torch.cat([part.length_S for part in parts]),
        extra,
    )


def join_judged(parts: Sequence[Judged]) -> Judged:
    """Concatenate the judgements of several batches, with consecutive numbers of responses and groups."""
    responses, groups = [0], [0]
    for part in parts:
        responses.append(responses[-1] + len(part.group_S))
        groups.append(groups[-1] + (int(part.group_S.max()) + 1 if len(part.group_S) else 0))
    shifts = {"better_P": responses, "worse_P": responses, "group_S": groups}

    def join(name: str) -> torch.Tensor:
        offsets = shifts.get(name, [0] * (len(parts) + 1))
        return torch.cat([getattr(part, name) + offset for part, offset in zip(parts, offsets, strict=False)])

    return Judged(**{name: join(name) for name in Judged.__dataclass_fields__})


def _not_finite(task: Losses, batches: Sequence[Batch], weights: Weights, step: int, norm: float) -> NumericError:
    """Return the error for a gradient that is not finite. It lists the rows that fail when tested alone, else all."""
    culprits: list[str] = []
    groups = [group for batch in batches for group in batch.groups]
    is_split = any_sharded(weights.masters)
    # a pass of a split model needs all ranks, so each tests the groups of all
    tested = [group for of_rank in ranks.gather(groups) for group in of_rank] if is_split else groups
    for group in tested:
        weights.clear_gradients()
        loss = task.loss_of(task.micro_batches([group])[0]).loss_sum
        if loss.requires_grad:
            loss.backward()
        bad = not all(bool(torch.isfinite(local(value)).all()) for value in (loss, *weights.gradients()))
        if ranks.any_rank(bad) if is_split else bad:
            culprits.append(group.origin)
    weights.clear_gradients()
    if not is_split:
        culprits = [row for of_rank in ranks.gather(culprits) for row in of_rank]
    rows = culprits or [row for of_rank in ranks.gather([group.origin for group in groups]) for row in of_rank]
    return NumericError(
        f"the gradient norm is {norm}, so the run stopped before this update",
        where=f"step {step}",
        why=f"rows: {', '.join(rows[:8])}{', ...' if len(rows) > 8 else ''}"
        + ("" if culprits else " (each row alone has a finite gradient; their sum overflows)"),
        fix="look at these rows with `preftune data show`, lower optim.lr, or train in fp32",
    )
