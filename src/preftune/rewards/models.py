"""Rewards computed by models: a reward model, or the implicit reward of a policy and its reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from preftune.chat.open import renderer_of
from preftune.chat.render import Renderer
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.errors import ConfigError, ModelError
from preftune.formats.account import Account
from preftune.formulas import implicit_reward
from preftune.model import load, scalar
from preftune.model.logprobs import Scorer, logps
from preftune.rewards.reward import PromptResponse, Reward
from preftune.scoring import score_responses
from preftune.types import Message, PreferenceGroup, Text, TokenGroup


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model with its tokenizer. Its rewards are scaled to mean 0 and variance 1 on its training data."""

    scorer: Scorer
    renderer: Renderer
    max_length: int
    reasons: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def open(path: str, where: str, device: Any = None) -> RewardModel:
        source = load.locate(path, where)
        if source.adapter:
            raise scalar.adapter_unsupported(source.adapter)
        architectures = getattr(load.load_config(source), "architectures", None) or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise ModelError(
                f"the model is {', '.join(architectures) or 'of unknown kind'}, not a reward model",
                where=f"{where} {path}",
                fix="train one with preftune reward, or use a sequence classifier with one label",
            )
        model = scalar.load_scalar(source, torch.float32)
        model.to(device or "cpu").requires_grad_(False)
        max_length = load.max_positions(model.config) or 1 << 20
        return RewardModel(scalar.scalar_scorer(model), renderer_of(source), max_length)

    @torch.no_grad()
    def __call__(self, responses: Sequence[PromptResponse]) -> Sequence[float | None]:
        tokens = tokenize_responses(responses, self.renderer, self.max_length, self.reasons)
        return fill_gaps(tokens, [value for [value] in self.score_groups(list(tokens.values()))], len(responses))

    @torch.no_grad()
    def score_groups(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """Return the scaled rewards of each group's responses."""
        scale = scalar.scale_of(self.scorer.model)
        forward = partial(scalar.reward_logps, self.scorer)
        rewards = score_responses(forward, scalar.with_reward_slot(groups), self.scorer.device)
        return [[(value - scale.mean) / scale.std for value in values.tolist()] for values in rewards]


def tokenize_responses(
    responses: Sequence[PromptResponse], renderer: Renderer, max_length: int, reasons: Counter[str]
) -> dict[int, TokenGroup]:
    """Return one token group per response, by its index. Responses that do not fit are counted in `reasons`."""
    groups = []
    for index, r in enumerate(responses):
        response: Text = r.response if isinstance(r.prompt, str) else (Message("assistant", r.response),)
        groups.append(PreferenceGroup(r.prompt, (response,), ended=(r.ended,), origin=str(index)))
    account = Account("responses")
    tokens = tokenize(groups, renderer, Limits(max_length, overlong="drop", bad_rows="drop"), account)
    reasons.update({reason: len(origins) for reason, origins in account.dropped.items()})
    return {int(group.origin): group for group in tokens}


def fill_gaps(indices: Iterable[int], values: Sequence[float], length: int) -> list[float | None]:
    """Return a list of `length` with the values at their indices and None elsewhere."""
    by_index = dict(zip(indices, values, strict=True))
    return [by_index.get(index) for index in range(length)]


def open_implicit(name: str, where: str, device: Any = None) -> Reward:
    """Open the implicit reward beta (log policy - log reference) of "POLICY,REFERENCE,BETA"; BETA defaults to 1."""
    paths, beta = parse_implicit(name, where)
    sources = [load.locate(path, where) for path in paths]
    tokenizers = [load.load_tokenizer(source) for source in sources]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        fix = "use the model that the policy was tuned from as the reference"
        raise ModelError("policy and reference have different vocabularies", where=where, fix=fix)
    scorers = [Scorer.of(load.load_model(source, torch.float32).to(device or "cpu")) for source in sources]
    renderer = renderer_of(sources[0], tokenizer=tokenizers[0])
    max_length, reasons = load.max_positions(scorers[0].model.config) or 1 << 20, Counter[str]()

    @torch.no_grad()
    def reward(responses: Sequence[PromptResponse]) -> Sequence[float | None]:
        tokens = tokenize_responses(responses, renderer, max_length, reasons)
        groups = list(tokens.values())
        policy, reference = (score_responses(partial(logps, s), groups, s.device) for s in scorers)
        values = [float(implicit_reward(p, r, beta)) for [p], [r] in zip(policy, reference, strict=True)]
        return fill_gaps(tokens, values, len(responses))

    reward.reasons = reasons  # type: ignore[attr-defined]
    return reward


def parse_implicit(name: str, where: str) -> tuple[tuple[str, str], float]:
    """Return the policy, reference and beta of "POLICY,REFERENCE" or "POLICY,REFERENCE,BETA"."""
    parts = name.split(",")
    if len(parts) not in (2, 3) or not all(parts):
        fix = "write implicit:POLICY,REFERENCE or implicit:POLICY,REFERENCE,BETA"
        raise ConfigError(f"implicit:{name} needs a policy and a reference", where=where, fix=fix)
    try:
        beta = float(parts[2]) if len(parts) == 3 else 1.0
    except ValueError:
        beta = math.nan
    if not 0 < beta < math.inf:
        what, fix = f"beta must be a number above 0, not {parts[2]!r}", "write implicit:POLICY,REFERENCE,0.1"
        raise ConfigError(what, where=f"{where} implicit:{name}", fix=fix)
    return (parts[0], parts[1]), beta
