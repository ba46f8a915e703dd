"""Combine loss functions into the value that is differentiated: inputs by name, weights, sums and counts.

A loss declares its inputs by the names of its arguments:

    policy, reference  PairLogps for losses on pairs, otherwise Logps
    policy_tokens, reference_tokens   Pair of (P, longest) per-token log-probs, 0 after the end of a response
    kl                 Pair: sum over tokens of KL(ref(.|context) || pi(.|context))
    collision          Pair: sum over tokens of log sum_v pi(v|context)^2, without gradient
    reward             Pair of (P,) rewards from a reward model
    probability        (P,) soft label: probability that the better response is better
    margin             (P,) how much better it is, from the data
    label              (S,) +1, -1 or 0; the loss then has one value per response
    mismatched         (S,) true for a response that belongs to a different prompt
    rank, group        (S,) rank within the group, index of the group; the loss then has one value per group

A loss without `label` and `rank` has one value per pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from preftune.types import Judged, Logps, LossOutput, Pair, PairLogps

F = TypeVar("F", bound=Callable[..., Any])
Items = Literal["pairs", "responses", "groups", "tokens"]

INPUTS = (
    "policy", "reference", "policy_tokens", "reference_tokens", "kl", "collision", "probability", "margin", "label",
    "mismatched", "rank", "group",
)  # fmt: skip
#: Inputs that are statistics of token distributions over the vocabulary (model.vocabulary_statistics).
STATISTICS = ("kl", "collision")


def joint(loss: F) -> F:
    """Mark `loss` as a loss that needs all items of an optimizer step at once, for a sort or a mean.

    Such a loss is not a sum over micro-batches. The training loop computes it on the log-probs of the whole step, with
    an extra forward pass if the step has several micro-batches, so the gradient does not depend on the micro-batches.
    """
    loss.couples_whole_step = True  # type: ignore[attr-defined]
    return loss


def is_joint(loss: Callable[..., Any]) -> bool:
    return bool(getattr(loss, "couples_whole_step", False))


@dataclass(frozen=True)
class Term:
    """One loss of the sum, with the values of its parameters."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    items: Items
    parameters: Mapping[str, Any]
    weight: float = 1.0


def items_of(inputs: Sequence[str]) -> Items:
    """Return what a loss with these inputs has one value for."""
    if "label" in inputs:
        return "responses"
    return "groups" if "rank" in inputs else "pairs"


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses over the same items.

    Both the sum and the count include the weights of judgements: weight 2 equals having the judgement twice.
    """

    terms: tuple[Term, ...]

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(name for term in self.terms for name in term.inputs)

    @property
    def statistics(self) -> frozenset[str]:
        return self.inputs & frozenset(STATISTICS)

    @property
    def uses_reference(self) -> bool:
        return bool(self.inputs & {"reference", "reference_tokens", "kl"})

    @property
    def joint(self) -> bool:
        return any(is_joint(term.function) for term in self.terms)

    @property
    def items(self) -> Items:
        return self.terms[0].items

    @property
    def beta(self) -> float:
        """Scale of the implicit reward in the metrics: the beta of the first loss that has one, otherwise 1."""
        betas = [float(term.parameters["beta"]) for term in self.terms if "beta" in term.parameters]
        return betas[0] if betas else 1.0

    def count(self, judged: Judged, length_S: Tensor) -> Tensor:
        """Return the number of items in a batch, on its device. The loop divides by the sum of it over the step."""
        match self.items:
            case "pairs":
                return judged.weight_P.sum()
            case "responses":
                return (judged.label_S != 0).sum().float()
            case "groups":
                return (judged.group_S.diff() != 0).sum().float() + 1  # the responses of a group are adjacent
            case "tokens":
                return length_S.sum().float()

    def __call__(self, policy: Logps, reference: Logps | None, judged: Judged) -> LossOutput:
        """Return the sum of the loss over the items. Without a `reference`, all reference log-probs are 0."""
        inputs = _input_values(self.inputs, self.items, policy, reference, judged)
        total = policy.sum_S.new_zeros(())
        metrics = {}
        for term in self.terms:
            values = term.function(**{name: inputs[name] for name in term.inputs}, **term.parameters)
            weighted = (values * judged.weight_P).sum() if self.items == "pairs" else values.sum()
            total = total + term.weight * weighted
            if len(self.terms) > 1:
                metrics[f"loss/{term.name}"] = weighted.detach()
        count = self.count(judged, policy.length_S)
        return LossOutput(total, count, {name: (value, count) for name, value in metrics.items()})

    @torch.no_grad()
    def by_group(self, policy: Logps, reference: Logps | None, judged: Judged) -> tuple[Tensor, Tensor]:
        """Return (G,) loss sums and (G,) item counts, one per group of the batch. Not for losses counted by tokens.

        Both are empty for a loss that does not return one value per item.
        """
        inputs = _input_values(self.inputs, self.items, policy, reference, judged)
        values = sum(
            term.weight * term.function(**{name: inputs[name] for name in term.inputs}, **term.parameters)
            for term in self.terms
        )
        assert isinstance(values, Tensor)
        match self.items:
            case "pairs":
                weight, group = judged.weight_P, judged.group_S[judged.better_P]
            case "responses":
                weight, group = (judged.label_S != 0).to(values.dtype), judged.group_S
            case _:
                weight, group = torch.ones_like(values), torch.arange(len(values), device=values.device)
        if values.shape != weight.shape or not len(group):
            return values.new_zeros(0), values.new_zeros(0)
        empty = values.new_zeros(int(group.max()) + 1)
        return empty.index_add(0, group, weight * values), empty.index_add(0, group, weight.to(values.dtype))


def _input_values(
    names: frozenset[str], items: Items, policy: Logps, reference: Logps | None, judged: Judged
) -> dict[str, Any]:
    if reference is None:
        reference = Logps(torch.zeros_like(policy.token_N), torch.zeros_like(policy.sum_S), policy.length_S)
    providers: dict[str, Callable[[], Any]] = {
        "policy": lambda: pair_logps(policy, judged) if items == "pairs" else policy,
        "reference": lambda: pair_logps(reference, judged) if items == "pairs" else reference,
        "policy_tokens": lambda: _pair_tokens(policy, judged),
        "reference_tokens": lambda: _pair_tokens(reference, judged),
        "kl": lambda: _pair(policy.extra["kl"], judged),
        "collision": lambda: _pair(policy.extra["collision"], judged),
        "reward": lambda: _pair(policy.sum_S, judged),
        "probability": lambda: judged.probability_P,
        "margin": lambda: judged.margin_P,
        "label": lambda: judged.label_S,
        "mismatched": lambda: judged.label_S == 0,
        "rank": lambda: judged.rank_S,
        "group": lambda: judged.group_S,
    }
    return {name: providers[name]() for name in names}


def pair_logps(logps: Logps, judged: Judged) -> PairLogps:
    """Return the log-probs and lengths of the better and the worse response of each judgement."""
    length = logps.length_S.to(logps.sum_S.dtype)
    better, worse = judged.better_P, judged.worse_P
    return PairLogps(logps.sum_S[better], logps.sum_S[worse], length[better], length[worse])


def _pair(values_S: Tensor, judged: Judged) -> Pair:
    return Pair(values_S[judged.better_P], values_S[judged.worse_P])


def _pair_tokens(logps: Logps, judged: Judged) -> Pair:
    longest = int(logps.length_S.max())
    position_SL = torch.arange(longest, device=logps.length_S.device).expand(len(logps.length_S), longest)
    token_SL = logps.token_N.new_zeros(position_SL.shape)
    token_SL = token_SL.masked_scatter(position_SL < logps.length_S[:, None], logps.token_N)
    return Pair(token_SL[judged.better_P], token_SL[judged.worse_P])
