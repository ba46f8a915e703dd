"""Rewards that a model computes: a reward model, or the implicit reward of a policy and its reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from preftune.chat.open import renderer_of
from preftune.chat.render import Renderer
from preftune.data.groups import Limits, tokenize
from preftune.data.layout import Budget, micro_batches
from preftune.errors import ConfigError, ModelError
from preftune.formats.account import Account
from preftune.model import load
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import by_group
from preftune.model.scalar import (
    adapter_unsupported,
    load_scalar,
    reward_logps,
    scalar_scorer,
    scale_of,
    with_reward_slot,
)
from preftune.rewards.reward import Answer, Reward
from preftune.types import Batch, Logps, Message, PreferenceGroup, Text, TokenGroup

SLOTS = 4096


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A scalar model with its tokenizer; rewards come out with mean 0 and variance 1 of its training data."""

    scorer: Scorer
    renderer: Renderer
    longest: int
    reasons: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def open(path: str, where: str, dtype: torch.dtype, device: Any = None) -> RewardModel:
        source = load.locate(path, where)
        if source.adapter:
            raise adapter_unsupported(source.adapter)
        architectures = getattr(load.load_config(source), "architectures", None) or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise ModelError(
                f"not a reward model but {', '.join(architectures) or 'a model of unknown kind'}",
                where=f"{where} {path}",
                fix="train one with preftune reward, or name any sequence classifier with one label",
            )
        model = load_scalar(source, dtype)
        model.to(device or "cpu").requires_grad_(False)
        longest = load.max_positions(model.config) or 1 << 20
        return RewardModel(scalar_scorer(model), renderer_of(source), longest)

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> Sequence[float | None]:
        tokens = tokens_of(answers, self.renderer, self.longest, self.reasons)
        return in_place(tokens, [value for [value] in self.of_groups(list(tokens.values()))], len(answers))

    @torch.no_grad()
    def of_groups(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """The rewards of each group's responses."""
        scale = scale_of(self.scorer.model)
        found = _sums(lambda batch: reward_logps(self.scorer, batch.to(self.scorer.device)), with_reward_slot(groups))
        return [[(value - scale.mean) / scale.std for value in values] for values in found]


def tokens_of(
    answers: Sequence[Answer], renderer: Renderer, longest: int, reasons: Counter[str]
) -> dict[int, TokenGroup]:
    """One group an answer, by the answer's number, without those that cannot be read: `reasons` says why."""
    groups = []
    for number, a in enumerate(answers):
        response: Text = a.response if isinstance(a.prompt, str) else (Message("assistant", a.response),)
        groups.append(PreferenceGroup(a.prompt, (response,), ended=(a.ended,), origin=str(number)))
    account = Account("answers")
    tokens = tokenize(groups, renderer, Limits(longest, overlong="drop", bad_rows="drop"), account)
    reasons.update({reason: len(origins) for reason, origins in account.dropped.items()})
    return {int(group.origin): group for group in tokens}


def in_place(tokens: Iterable[int], values: Sequence[float], number: int) -> list[float | None]:
    """The values at their numbers, None elsewhere."""
    known = dict(zip(tokens, values, strict=True))
    return [known.get(place) for place in range(number)]


def _sums(says: Callable[[Batch], Logps], groups: Sequence[TokenGroup]) -> list[list[float]]:
    """A number for each response of each group."""
    lay = partial(micro_batches, budget=Budget("rows", SLOTS))
    return [values.tolist() for (values,) in by_group(lambda batch: (says(batch).sum_S.double(),), groups, lay)]


def implicit(name: str, where: str, dtype: torch.dtype, device: Any = None) -> Reward:
    """beta (log policy - log reference) of the response, from "POLICY,REFERENCE,BETA"; without BETA it is 1."""
    paths, beta = models_of(name, where)
    sources = [load.locate(path, where) for path in paths]
    tokenizers = [load.load_tokenizer(source) for source in sources]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise ModelError("policy and reference have different vocabularies", where=where)
    scorers = [Scorer.of(load.load_model(source, dtype).to(device or "cpu")) for source in sources]
    renderer = renderer_of(sources[0], tokenizer=tokenizers[0])
    longest, reasons = load.max_positions(scorers[0].model.config) or 1 << 20, Counter[str]()

    @torch.no_grad()
    def reward(answers: Sequence[Answer]) -> Sequence[float | None]:
        tokens = tokens_of(answers, renderer, longest, reasons)
        groups = list(tokens.values())
        own, base = (_sums(lambda batch, s=scorer: logps(s, batch.to(s.device)), groups) for scorer in scorers)  # type: ignore[misc]
        return in_place(tokens, [beta * (p - r) for [p], [r] in zip(own, base, strict=True)], len(answers))

    reward.reasons = reasons  # type: ignore[attr-defined]
    return reward


def models_of(name: str, where: str) -> tuple[tuple[str, str], float]:
    """Policy, reference and beta of "POLICY,REFERENCE" or "POLICY,REFERENCE,BETA"."""
    parts = name.split(",")
    if len(parts) not in (2, 3) or not all(parts):
        raise ConfigError(
            f"implicit:{name}", where=where, fix="implicit:POLICY,REFERENCE or implicit:POLICY,REFERENCE,BETA"
        )
    try:
        beta = float(parts[2]) if len(parts) == 3 else 1.0
    except ValueError:
        beta = math.nan
    if not 0 < beta < math.inf:
        raise ConfigError(f"beta must be a number above 0, not {parts[2]!r}", where=f"{where} implicit:{name}")
    return (parts[0], parts[1]), beta
