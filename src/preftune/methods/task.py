"""The task of every method whose loss is a function of response log-probs: SFT and preference training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from preftune.data.layout import Budget, micro_batches
from preftune.losses import Objective
from preftune.model.logprobs import Scorer, logps, reference_logps
from preftune.model.reference import Cached, Live, Reference
from preftune.train.loop import Measured, join
from preftune.train.metrics import Tally, preference_metrics
from preftune.types import Batch, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class ResponseTask:
    """Policy, reference, data and loss of a run; see train.loop.Task for what the methods promise."""

    scorer: Scorer
    reference: Reference | None
    loss: Objective
    groups: Sequence[TokenGroup]
    held_out: Sequence[TokenGroup]
    budget: Budget

    @property
    def joint(self) -> bool:
        return self.loss.joint

    def layout(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        return [batch.to(self.scorer.device) for batch in micro_batches(groups, self.budget)]

    def count(self, batch: Batch) -> float:
        return self.loss.count(batch.judged, batch.length_S)

    def measure(self, batch: Batch) -> Measured:
        """One pass of the policy and one of the reference, or of its cache."""
        statistics: Collection[str] = self.loss.statistics
        if self.reference is None:
            return Measured(logps(self.scorer, batch, statistics), None, batch.judged)
        if "kl" in statistics:
            assert isinstance(self.reference, Live)
            states = self.reference.states(batch)
            reference = reference_logps(states, batch)
            return Measured(logps(self.scorer, batch, statistics, states), reference, batch.judged)
        return Measured(logps(self.scorer, batch, statistics), self.reference.logps(batch), batch.judged)

    def objective(self, measured: Measured) -> LossOutput:
        out = self.loss(measured.policy, measured.reference, measured.judged)
        if self.loss.items == "tokens":
            return out
        found = preference_metrics(measured.policy, measured.reference, measured.judged, self.loss.beta)
        return LossOutput(out.loss_sum, out.count, {**out.metrics, **found})

    def updated(self) -> None:
        """Called after every update of the policy."""
        if isinstance(self.reference, Cached):
            self.reference.policy_updated()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and metrics of the held-out groups; a loss that couples a step sees all of them as one."""
        if not self.held_out:
            return {}
        tally = Tally()
        measured = []
        for batch in micro_batches(self.held_out, self.budget):
            measured.append(self.measure(batch.to(self.scorer.device)))
            if not self.joint:
                tally.add_loss(self.objective(measured.pop()))
        if self.joint:
            tally.add_loss(self.objective(join(measured)))
        return tally.means()
