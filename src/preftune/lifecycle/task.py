"""The task of SFT, preference and reward training: their losses are functions of response log-probs or rewards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from preftune.data.layout import Budget, micro_batches
from preftune.errors import ConfigError
from preftune.losses import Objective
from preftune.model.logprobs import Scorer, logps, logps_from_states
from preftune.model.memory import compute_in_parts
from preftune.model.reference import Cached, Live, Reference
from preftune.model.scalar import reward_logps
from preftune.ranks import group as ranks
from preftune.ranks.shard import is_sharded
from preftune.ranks.work import fillers, own, slots
from preftune.train.by_source import loss_by_source, rewards_by_source
from preftune.train.exchange import of_all_ranks
from preftune.train.loop import Measured, join
from preftune.train.metrics import Calibration, Spread, Tally, margins, preference_metrics
from preftune.types import Batch, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class ResponseTask:
    """Policy, reference, data and loss of a run; train.loop.Task documents the methods.

    at_start   the policy has not been updated, so it equals the reference. Its log-probs are then used in place of
               cached ones, which differ in the last digits because they were computed in other batches
    sources    the names of the training sources, by their numbers, if there are several; `held_out_sources` likewise
    """

    scorer: Scorer
    reference: Reference | None
    loss: Objective
    groups: Sequence[TokenGroup]
    held_out: Sequence[TokenGroup]
    budget: Budget
    is_reward_model: bool = False
    at_start: bool = False
    sources: Mapping[int, str] = field(default_factory=dict)
    held_out_sources: Mapping[int, str] = field(default_factory=dict)

    @property
    def joint(self) -> bool:
        return self.loss.joint

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        return [batch.to(self.scorer.device) for batch in micro_batches(groups, self.budget)]

    def halved(self, batches: Sequence[Batch]) -> ResponseTask:
        """Return the task with micro-batches half as large. Raises ConfigError if each has a single group."""
        return replace(self, budget=halved(self.budget, batches))

    def count(self, batch: Batch) -> Tensor:
        return self.loss.count(batch.judged, batch.length_S)

    def measure(self, batch: Batch) -> Measured:
        """Return the log-probs of policy and reference, or for a reward model its rewards."""
        statistics: Collection[str] = self.loss.statistics
        sources = tuple(group.source for group in batch.groups)
        if self.reference is None:
            forward = reward_logps if self.is_reward_model else logps
            return Measured(forward(self.scorer, batch, statistics), None, batch.judged, sources)
        if self.at_start and isinstance(self.reference, Cached):
            policy = logps(self.scorer, batch, statistics)
            return Measured(policy, policy.detach(), batch.judged, sources)
        if "kl" in statistics:
            assert isinstance(self.reference, Live)
            states = self.reference.states(batch)
            with torch.no_grad():
                reference = logps_from_states(states, batch)
            return Measured(logps(self.scorer, batch, statistics, states), reference, batch.judged, sources)
        return Measured(logps(self.scorer, batch, statistics), self.reference.logps(batch), batch.judged, sources)

    def loss_of(self, batch: Batch) -> LossOutput:
        """Return the loss of a batch, with metrics."""
        return self.objective(self.measure(batch))

    def objective(self, measured: Measured) -> LossOutput:
        out = self.loss(measured.policy, measured.reference, measured.judged)
        if self.sources:
            out = replace(out, metrics={**out.metrics, **self._by_source(measured)})
        if self.loss.items == "tokens":
            return out
        metrics = preference_metrics(measured.policy, measured.reference, measured.judged, self.loss.beta)
        if "reward" in self.loss.inputs:  # a reward model has no log-probs
            metrics = {name: value for name, value in metrics.items() if not name.startswith("logps/")}
        return LossOutput(out.loss_sum, out.count, {**out.metrics, **metrics})

    @torch.no_grad()
    def _by_source(self, measured: Measured) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the loss of each source, and its rewards and accuracy."""
        policy, reference, judged = measured.policy, measured.reference, measured.judged
        source_S = torch.tensor(measured.sources)[judged.group_S.cpu()]
        if self.loss.items == "tokens":
            lengths = policy.length_S.to(policy.sum_S.dtype)
            return loss_by_source(-policy.sum_S, lengths, source_S, self.sources)
        loss_G, count_G = self.loss.by_group(policy, reference, judged)
        losses = {}
        if len(loss_G):  # else the loss has no value per item
            losses = loss_by_source(loss_G, count_G, torch.tensor(measured.sources)[: len(loss_G)], self.sources)
        return losses | rewards_by_source(policy, reference, judged, self.loss.beta, source_S, self.sources)

    def after_update(self) -> ResponseTask:
        return replace(self, at_start=False) if self.at_start else self

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return loss and metrics of the held-out groups; a joint loss is computed on all of them at once."""
        if not self.held_out:
            return {}
        if self.sources != self.held_out_sources:
            return replace(self, sources=self.held_out_sources).evaluate()
        tally, calibration, spread = Tally(), Calibration(), Spread()
        measured = []
        mine = self.micro_batches(own(self.held_out, slots(self.budget.layout)))
        extra = fillers(mine, self.held_out, self.micro_batches, is_sharded(self.scorer.model))
        for batch in mine:
            for _, part in compute_in_parts(self.measure, batch, self.micro_batches):
                measured.append(part)
                if len(part.judged.better_P):
                    calibration.add(*margins(part.policy, part.reference, part.judged, self.loss.beta))
                if not self.joint:
                    self._add(measured.pop(), tally, spread)
        for batch in extra:
            self.measure(batch)
        if self.joint:
            measured = of_all_ranks(measured, self.scorer.device)
            if ranks.first():
                self._add(join(measured), tally, spread)
        return {**tally.over_ranks().means(), **spread.over_ranks().means(), **calibration.over_ranks().means()}

    def _add(self, measured: Measured, tally: Tally, spread: Spread) -> None:
        tally.add_loss(self.objective(measured))
        if self.loss.items != "tokens":
            spread.add(*self.loss.by_group(measured.policy, measured.reference, measured.judged))


def halved(budget: Budget, batches: Sequence[Batch]) -> Budget:
    """Return the budget for micro-batches half as large as the largest one with several groups in `batches`.

    Raises ConfigError if each has a single group.
    """
    divisible = [len(batch.ids_T) for batch in batches if len(batch.groups) > 1]
    if not divisible:
        largest = max(batches, key=lambda batch: len(batch.ids_T))
        raise ConfigError(
            f"out of memory on a single group of {len(largest.ids_T):,} token slots",
            where=largest.groups[0].origin,
            why="a group cannot be split, because its responses share a prompt and are compared with each other",
            fix="set model.gradient_checkpointing=true, train with lora, or lower data.max_length",
        )
    return replace(budget, tokens=max(divisible) // 2)
