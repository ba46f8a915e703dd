"""The training loop: SFT, preference and reward training all run through `fit`; PPO has its own (methods.ppo_loop)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar, cast

import torch

from preftune.config.schema import OptimConfig, TrainConfig
from preftune.data.layout import Budget
from preftune.data.order import Step, size_of
from preftune.errors import NumericError, Stopped
from preftune.model.memory import out_of_memory, release
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, clip, lr_at, warmup_steps
from preftune.types import Batch, Judged, Logps, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class Measured:
    """What the models say about a batch: all that a loss can depend on."""

    policy: Logps
    reference: Logps | None
    judged: Judged


class Losses(Protocol):
    """What differs between training methods in one update: how groups become batches, and the loss of a batch."""

    @property
    def joint(self) -> bool:
        """Whether the loss couples all micro-batches of a step."""
        ...

    @property
    def budget(self) -> Budget:
        """Size of micro-batches."""
        ...

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        """The groups as micro-batches, on the model's device."""
        ...

    def halved(self, batches: Sequence[Batch]) -> Self:
        """The same with micro-batches half as large as `batches`. Raises ConfigError if they cannot be smaller."""
        ...

    def count(self, batch: Batch) -> torch.Tensor:
        """Items of a batch, in the unit that the loss is divided by."""
        ...

    def loss_of(self, batch: Batch) -> LossOutput:
        """Run the model(s): the loss of a batch, with metrics."""
        ...


class Task(Losses, Protocol):
    """The losses of a method, with the training data of a run."""

    @property
    def groups(self) -> Sequence[TokenGroup]:
        """The training data."""
        ...

    def after_update(self) -> Self:
        """The task once the policy has been updated."""
        ...


class JointTask(Losses, Protocol):
    """A task whose loss may couple a whole step, so that it comes in two pieces."""

    def measure(self, batch: Batch) -> Measured:
        """Run the model(s)."""
        ...

    def objective(self, measured: Measured) -> LossOutput:
        """The loss of what was measured, with metrics."""
        ...


L = TypeVar("L", bound=Losses)
T = TypeVar("T", bound=Task)


class Log(Protocol):
    """Where the loop reports to."""

    @property
    def tally(self) -> Tally:
        """Metrics of steps that a stopped run did but did not log."""
        ...

    def train(self, step: int, metrics: dict[str, float]) -> None: ...

    def save(self, step: int, tally: Tally, tokens: int) -> None: ...

    def halved(self, step: int, tokens: int) -> None:
        """Memory ran out: from here on, a micro-batch has at most so many token slots."""
        ...

    def stop_requested(self) -> bool: ...


def fit(
    task: T,
    steps: Sequence[Step],
    start: int,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    train: TrainConfig,
    log: Log,
) -> Iterator[tuple[int, T]]:
    """Do the optimizer steps `steps[start:]`. Yield the step number and the task whenever an evaluation is due.

    Evaluations are due before the first step, every `train.eval_every` steps, and at the end; what the caller does with
    them does not count as training time. `log.tally` holds metrics that a resumed run had not logged yet. Raises
    NumericError before an update that would not be finite, and Stopped after a step if the user asked for it.
    """
    total, warmup = len(steps), warmup_steps(optim.warmup, len(steps))
    tally, clock = log.tally, _Clock()
    if start == 0:
        yield 0, task
        clock.read()
    for step in steps[start:]:
        groups = [task.groups[i] for i in step.members]
        lr = lr_at(step.number, total, optim.lr, optim.schedule, warmup)
        task, metrics, grad_norm = update(task, groups, weights, optimizer, lr, optim.max_grad_norm, step.number, log)
        task = task.after_update()
        tally.merge(metrics)
        clock.add(sum(map(size_of, groups)), sum(group.tokens for group in groups))

        if step.number % train.log_every == 0 or step.number in (1, total):
            rates = clock.read()
            log.train(step.number, {**tally.means(), "grad_norm": grad_norm, "lr": lr, "epoch": step.epoch, **rates})
            tally = Tally()
        stop = log.stop_requested() and step.number < total
        with clock.paused():
            if step.number == total or (train.eval_every and step.number % train.eval_every == 0):
                yield step.number, task
            if stop or (train.save_every and step.number % train.save_every == 0):
                log.save(step.number, tally, task.budget.tokens)
        if stop:
            raise stopped(step.number, total)


def stopped(step: int, total: int) -> Stopped:
    """The error for a run that the user stopped after a step; its checkpoint is saved."""
    return Stopped(f"stopped after step {step} of {total}; everything is saved", fix="rerun the same command to resume")


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
    """One update of the weights on `groups`: the task (its micro-batches may have become smaller), metrics, norm."""
    task, batches, found = _gradients(task, groups, weights, step, log)
    grad_norm = float(clip(weights.gradients(), max_norm))
    if not math.isfinite(grad_norm):
        raise _not_finite(task, batches, weights, step, grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    weights.publish()
    weights.clear_gradients()
    return task, found, grad_norm


def _gradients(
    task: L, groups: Sequence[TokenGroup], weights: Weights, step: int, log: Log
) -> tuple[L, list[Batch], Tally]:
    """The gradients of a step. Where memory runs out, micro-batches are halved and the step begins again: the
    backward pass that failed has left part of its gradient behind. The smaller micro-batches are kept."""
    while True:
        batches = task.micro_batches(groups)
        try:
            count = torch.stack([task.count(batch) for batch in batches]).sum()
            return task, batches, _accumulate(task, batches, count)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        weights.clear_gradients()  # after the handler: the error holds what had been allocated
        task = task.halved(batches)
        log.halved(step, task.budget.tokens)
        release()


def _accumulate(task: Losses, batches: Sequence[Batch], count: torch.Tensor) -> Tally:
    """Gradients of  loss_sum / count  over all micro-batches, where `count` is that of the whole step."""
    if task.joint and len(batches) > 1:
        return _accumulate_jointly(cast(JointTask, task), batches, count)
    tally = Tally()
    for batch in batches:
        out = task.loss_of(batch)
        (out.loss_sum / count).backward()
        tally.add_loss(out)
    return tally


def _accumulate_jointly(task: JointTask, batches: Sequence[Batch], count: torch.Tensor) -> Tally:
    """The same for a loss that couples the whole step: its gradient with respect to all log-probs first,
    then one micro-batch after another carries its part back into the model."""
    with torch.no_grad():
        measured = [task.measure(batch) for batch in batches]
    leaves = [_leaf(m.policy) for m in measured]
    out = task.objective(join([replace(m, policy=leaf) for m, leaf in zip(measured, leaves, strict=True)]))
    (out.loss_sum / count).backward()
    for batch, leaf in zip(batches, leaves, strict=True):
        policy = task.measure(batch).policy
        pairs = [(policy.sum_S, leaf.sum_S), (policy.token_N, leaf.token_N)]
        pairs += [(policy.extra[name], leaf.extra[name]) for name in leaf.extra]
        used = [(value, at.grad) for value, at in pairs if at.grad is not None and value.requires_grad]
        torch.autograd.backward([value for value, _ in used], [grad for _, grad in used])
    tally = Tally()
    tally.add_loss(out)
    return tally


def _leaf(policy: Logps) -> Logps:
    def free(value: torch.Tensor) -> torch.Tensor:
        return value.detach().requires_grad_()

    extra = {name: free(value) for name, value in policy.extra.items()}
    return Logps(free(policy.token_N), free(policy.sum_S), policy.length_S, extra)


def join(parts: Sequence[Measured]) -> Measured:
    """What was measured on several batches as if they were one."""
    references = [part.reference for part in parts if part.reference is not None]
    return Measured(
        join_logps([part.policy for part in parts]),
        join_logps(references) if references else None,
        join_judged([part.judged for part in parts]),
    )


def join_logps(parts: Sequence[Logps]) -> Logps:
    """Log-probs of several batches as those of one."""
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    return Logps(
        torch.cat([part.token_N for part in parts]),
        torch.cat([part.sum_S for part in parts]),
        torch.cat([part.length_S for part in parts]),
        extra,
    )


def join_judged(parts: Sequence[Judged]) -> Judged:
    """Judgements of several batches as those of one, responses and groups numbered through."""
    responses = [0]
    groups = [0]
    for part in parts:
        responses.append(responses[-1] + len(part.group_S))
        groups.append(groups[-1] + (int(part.group_S.max()) + 1 if len(part.group_S) else 0))
    shifts = {"better_P": responses, "worse_P": responses, "group_S": groups}

    def join(name: str) -> torch.Tensor:
        offsets = shifts.get(name, [0] * (len(parts) + 1))
        return torch.cat([getattr(part, name) + offset for part, offset in zip(parts, offsets, strict=False)])

    return Judged(**{name: join(name) for name in Judged.__dataclass_fields__})


def _not_finite(task: Losses, batches: Sequence[Batch], weights: Weights, step: int, norm: float) -> NumericError:
    """Find the rows behind a gradient that is not finite: each group alone, then all of them in doubt."""
    guilty: list[str] = []
    everyone = [group for batch in batches for group in batch.groups]
    for group in everyone:
        weights.clear_gradients()
        loss = task.loss_of(task.micro_batches([group])[0]).loss_sum
        if loss.requires_grad:
            loss.backward()
        if not all(bool(torch.isfinite(value).all()) for value in (loss, *weights.gradients())):
            guilty.append(group.origin)
    weights.clear_gradients()
    named = guilty or [group.origin for group in everyone]
    return NumericError(
        f"the gradient norm is {norm} at step {step}; this update was not made",
        why=f"rows: {', '.join(named[:8])}{', ...' if len(named) > 8 else ''}"
        + ("" if guilty else " (each alone is finite: the step as a whole overflows)"),
        fix="look at these rows with `preftune data show`, lower optim.lr, or train in fp32",
    )


class _Clock:
    """Items and tokens a second since the last reading; evaluation and saving do not count."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since, self._items, self._tokens = now(), 0, 0

    def add(self, items: int, tokens: int) -> None:
        self._items += items
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        spent = max(self._now() - self._since, 1e-9)
        rates = {"pairs_per_s": self._items / spent, "tokens_per_s": self._tokens / spent}
        self._since, self._items, self._tokens = self._now(), 0, 0
        return rates

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not training time."""
        begin = self._now()
        yield
        self._since += self._now() - begin
