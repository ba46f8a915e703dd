"""The task of every method whose loss is a function of response log-probs: SFT and preference training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.data.layout import Budget, micro_batches
from preftune.errors import ConfigError
from preftune.losses import Objective
from preftune.model.logprobs import Scorer, logps, reference_logps
from preftune.model.memory import in_parts
from preftune.model.reference import Cached, Live, Reference
from preftune.train.loop import Measured, join
from preftune.train.metrics import Calibration, Spread, Tally, margins, preference_metrics
from preftune.types import Batch, Logps, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class ResponseTask:
    """Policy, reference, data and loss of a run; see train.loop.Task for what the methods promise.

    ask        returns the log-probs of a batch, or a reward model's rewards in their place
    at_start   the policy has not been updated and is the reference. Its own log-probs then take the place of cached
               ones, which differ in the last digits: those depend on what else is in a forward pass
    """

    scorer: Scorer
    reference: Reference | None
    loss: Objective
    groups: Sequence[TokenGroup]
    held_out: Sequence[TokenGroup]
    budget: Budget
    ask: Callable[..., Logps] = logps
    at_start: bool = False

    @property
    def joint(self) -> bool:
        return self.loss.joint

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        return [batch.to(self.scorer.device) for batch in micro_batches(groups, self.budget)]

    def halved(self, batches: Sequence[Batch]) -> ResponseTask:
        """The same with micro-batches half as large. Raises ConfigError if each has a single group."""
        return replace(self, budget=halved(self.budget, batches))

    def count(self, batch: Batch) -> Tensor:
        return self.loss.count(batch.judged, batch.length_S)

    def measure(self, batch: Batch) -> Measured:
        """One pass of the policy and one of the reference, or of its cache."""
        statistics: Collection[str] = self.loss.statistics
        if self.reference is None:
            return Measured(self.ask(self.scorer, batch, statistics), None, batch.judged)
        if self.at_start and isinstance(self.reference, Cached):
            policy = logps(self.scorer, batch, statistics)
            return Measured(policy, policy.detach(), batch.judged)
        if "kl" in statistics:
            assert isinstance(self.reference, Live)
            states = self.reference.states(batch)
            reference = reference_logps(states, batch)
            return Measured(logps(self.scorer, batch, statistics, states), reference, batch.judged)
        return Measured(logps(self.scorer, batch, statistics), self.reference.logps(batch), batch.judged)

    def loss_of(self, batch: Batch) -> LossOutput:
        """The loss of a batch, with metrics."""
        return self.objective(self.measure(batch))

    def objective(self, measured: Measured) -> LossOutput:
        out = self.loss(measured.policy, measured.reference, measured.judged)
        if self.loss.items == "tokens":
            return out
        found = preference_metrics(measured.policy, measured.reference, measured.judged, self.loss.beta)
        if "reward" in self.loss.inputs:  # there are no log-probs
            found = {name: value for name, value in found.items() if not name.startswith("logps/")}
        return LossOutput(out.loss_sum, out.count, {**out.metrics, **found})

    def after_update(self) -> ResponseTask:
        return replace(self, at_start=False) if self.at_start else self

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and metrics of the held-out groups; a loss that couples a step sees all of them as one."""
        if not self.held_out:
            return {}
        tally, calibration, spread = Tally(), Calibration(), Spread()
        measured = []
        for batch in self.micro_batches(self.held_out):
            for _, found in in_parts(self.measure, batch, self.micro_batches):
                measured.append(found)
                if len(found.judged.better_P):
                    calibration.add(*margins(found.policy, found.reference, found.judged, self.loss.beta))
                if not self.joint:
                    self._add(measured.pop(), tally, spread)
        if self.joint:
            self._add(join(measured), tally, spread)
        return {**tally.means(), **spread.means(), **calibration.means()}

    def _add(self, measured: Measured, tally: Tally, spread: Spread) -> None:
        tally.add_loss(self.objective(measured))
        if self.loss.items != "tokens":
            spread.add(*self.loss.by_group(measured.policy, measured.reference, measured.judged))


def halved(budget: Budget, batches: Sequence[Batch]) -> Budget:
    """Micro-batches half as large as the largest that can be divided. Raises ConfigError if none can."""
    divisible = [len(batch.ids_T) for batch in batches if len(batch.groups) > 1]
    if not divisible:
        largest = max(batches, key=lambda batch: len(batch.ids_T))
        raise ConfigError(
            f"out of memory on a single group of {len(largest.ids_T):,} token slots",
            where=largest.groups[0].origin,
            why="a group is never split: its prompt and its judgements belong together",
            fix="set model.gradient_checkpointing=true, train with lora, or lower data.max_length",
        )
    return replace(budget, tokens=max(divisible) // 2)
