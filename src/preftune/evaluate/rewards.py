"""Where rewards come from: a reward model, the implicit reward of a policy, VADER, the length, a judge, a function.

All of them read text, so a reward model may have another tokenizer than the policy.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from preftune import objects
from preftune.data.account import Account
from preftune.data.groups import Limits, tokenize
from preftune.data.layout import Budget, micro_batches
from preftune.data.prompts import Prompt
from preftune.data.render import Renderer
from preftune.errors import ConfigError, ModelError, NumericError, PreftuneError
from preftune.evaluate.renderers import renderer_of
from preftune.model import load
from preftune.model.generate import Sampled
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import by_group
from preftune.model.scalar import load_scalar, no_adapter, readable, reward_logps, scalar_scorer, scale_of
from preftune.resolve import FAULTS, in_words, inputs_of, line_of, parameters_of, place_of, resolve
from preftune.types import Batch, Logps, Message, PreferenceGroup, Text, TokenGroup, content

Floats = npt.NDArray[np.float64]
SLOTS = 4096
CHUNK = 64  # groups whose responses are rewarded in one call
LARGEST = 1e30  # what fp32 can still be added up in


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to be rewarded. One that has not `ended` was cut off; `origin` is the prompt's file:line."""

    prompt: Text
    response: str
    ended: bool = True
    origin: str = ""


#: None for a response that it cannot reward: one too long for a reward model, one that a judge's server refuses. A
#: reward's `reasons`, if it has them, say why, and how often it was so.
Reward = Callable[[Sequence[Answer]], Sequence[float | None]]


def note_text_only(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """Note the groups whose responses say something beside their text, for a judge or reward that reads text alone."""
    for group in groups:
        turns = [turn for response in group.responses if not isinstance(response, str) for turn in response]
        for name in sorted({name for turn in turns for name, _ in turn.extra}):
            account.note(f"{name!r} of a response is not shown: judge and reward read only its text", group.origin)


def answers_of(prompts: Sequence[Prompt], drawn: Sequence[Sampled]) -> list[Answer]:
    """All responses that were sampled for the prompts."""
    return [
        Answer(prompt.text, text, ended, prompt.origin)
        for prompt, sampled in zip(prompts, drawn, strict=True)
        for text, ended in zip(sampled.texts, sampled.ended, strict=True)
    ]


def open_reward(name: str, where: str = "reward", *, dtype: torch.dtype = torch.float32, device: Any = None) -> Reward:
    """The reward called `name`. Raises ConfigError or ModelError for one that cannot be had."""
    if name.startswith("judge:"):
        from preftune.evaluate.grades import graded  # which needs the names above

        return graded(name.removeprefix("judge:"), where)
    if name.startswith("implicit:"):
        return implicit(name.removeprefix("implicit:"), where, dtype, device)
    held = name.startswith(objects.FUNCTION)
    if (
        name not in RULES
        and not held
        and (Path(name).expanduser().is_dir() or not name.rpartition(":")[0].endswith(".py"))
    ):
        if "/" not in name and not Path(name).is_dir():
            resolve(name, RULES, where)  # says what is known
        return RewardModel.open(name, where, dtype, device)
    function = resolve(name, RULES, where)
    if name in RULES:
        return function()  # type: ignore[no-any-return]
    required = [key for key, p in parameters_of(function).items() if p.default is p.empty]
    if tuple(inputs_of(function)) != ("prompts", "responses") or required:
        raise ConfigError(
            f"{name} has the arguments {', '.join([*inputs_of(function), *required]) or 'none'}",
            where=f"{where}, {line_of(function)}",
            fix="def reward(prompts: list[str], responses: list[str]) -> list[float | None], one reward a response",
        )

    def reward(answers: Sequence[Answer]) -> Sequence[float | None]:
        found: Sequence[float | None] = function([content(a.prompt) for a in answers], [a.response for a in answers])
        return found

    reward.function = function  # type: ignore[attr-defined]
    return reward


def rewards_of(reward: Reward, answers: Sequence[Answer], when: str) -> Floats:
    """(S,) one reward a response, NaN where there is none. Raises ConfigError or NumericError naming the moment and the
    row for a reward that is not finite."""
    try:
        found: Any = reward(answers)
        if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping):
            found = list(found)  # of a generator, this runs the function
    except PreftuneError:
        raise
    except FAULTS as error:
        guilty = _guilty(reward, answers)
        ours = str(getattr(reward, "__module__", "")).startswith("preftune.")
        own = getattr(reward, "function", None if ours else reward)
        place, row = place_of(error, own), f"{when}, {guilty.origin}" if guilty else when
        raise ConfigError(
            f"the reward function raised {in_words(error)}",
            where=place or row,
            why="; ".join([row] * bool(place) + [f"on the response {a.response!r}" for a in [guilty] if a]),
            fix="repair the function, then run the same command again: saved results are kept",
        ) from error
    values = _numbers(found, answers, when)
    none = np.array([value is None for value in found], dtype=bool)
    if values.shape != (len(answers),):
        raise ConfigError(
            f"the reward function gave {len(found)} rewards for {len(answers)} responses"
            + (f", in the shape {values.shape}" if values.ndim > 1 else ""),
            where=f"{when}, {answers[0].origin}",
            fix="it must give one number for each response, in order",
        )
    bad = np.flatnonzero(~(np.abs(values) < LARGEST) & ~none)
    if len(bad):
        answer = answers[bad[0]]
        raise NumericError(
            f"the reward of {len(bad)} of {len(answers)} responses is {values[bad[0]]}",
            where=f"{when}, {answer.origin}",
            why=f"the first is {answer.response!r}",
            fix="a reward must be a finite number (below 1e30) for every text, also an empty one, or None",
        )
    return values


def _numbers(found: Any, answers: Sequence[Answer], when: str) -> Floats:
    """What a reward function returned. Raises ConfigError if it is not a list of numbers."""
    try:
        if not isinstance(found, list):
            raise TypeError
        return np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(found).__name__
        other = [v for v in found if isinstance(v, str | bytes)] if isinstance(found, list) else []
        raise ConfigError(
            f"the reward function returned a {kind}{f' with {other[0]!r}' if other else ''}, not a list of numbers",
            where=f"{when}, {answers[0].origin}" if answers else when,
            why=str(error),
            fix="it must give one number for each response, in order",
        ) from error


def every_reward(reward: Reward, answers: Sequence[Answer], when: str) -> Floats:
    """`rewards_of`, for what cannot go on without one of them. Raises ModelError if one is lacking."""
    values = rewards_of(reward, answers, when)
    if np.isnan(values).any():
        raise lacking(reward, answers, values, when)
    return values


def lacking(reward: Reward, answers: Sequence[Answer], values: Floats, when: str) -> ModelError:
    """What is said where responses without a reward cannot be left out."""
    missing = np.flatnonzero(np.isnan(values))
    return ModelError(
        f"{len(missing)} of {len(answers)} responses got no reward",
        where=f"{when}, {answers[missing[0]].origin}",
        why=why_none(reward),
        fix="leave out the longest prompts, sample shorter responses, or take a reward that reads more",
    )


def why_none(reward: Reward | None) -> str:
    """Why responses got no reward, in words; empty if nobody knows."""
    reasons: Counter[str] = getattr(reward, "reasons", None) or Counter()
    return "; ".join(f"{number:,}: {reason}" for reason, number in reasons.most_common(3))


def rewards_of_groups(
    reward: Reward, groups: Sequence[Sequence[Answer]], when: str, done: Callable[[int], None]
) -> list[list[float]]:
    """The rewards of the answers of each group, asked for in chunks of groups; NaN for those without one."""
    found: list[list[float]] = []
    for begin in range(0, len(groups), CHUNK):
        chunk = groups[begin : begin + CHUNK]
        values = rewards_of(reward, [answer for group in chunk for answer in group], when).tolist()
        for group in chunk:
            found.append(values[: len(group)])
            values = values[len(group) :]
        done(len(found))
    return found


def _guilty(reward: Reward, answers: Sequence[Answer]) -> Answer | None:
    """The first response that the function fails on alone."""
    for answer in answers:
        try:
            reward([answer])
        except FAULTS:
            return answer
    return None


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
            raise no_adapter(source.adapter)
        architectures = getattr(load.load_config(source), "architectures", None) or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise ModelError(
                f"not a reward model but {', '.join(architectures) or 'a model of unknown kind'}",
                where=f"{where} {path}",
                fix="train one with preftune reward, or name any sequence classifier with one label",
            )
        model = load_scalar(source, dtype)
        model.to(device or "cpu").requires_grad_(False)
        longest = load.positions(model.config) or 1 << 20
        return RewardModel(scalar_scorer(model), renderer_of(source), longest)

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> Sequence[float | None]:
        tokens = tokens_of(answers, self.renderer, self.longest, self.reasons)
        return in_place(tokens, [value for [value] in self.of_groups(list(tokens.values()))], len(answers))

    @torch.no_grad()
    def of_groups(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """The rewards of each group's responses."""
        scale = scale_of(self.scorer.model)
        found = _sums(lambda batch: reward_logps(self.scorer, batch.to(self.scorer.device)), readable(groups))
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
    longest, reasons = load.positions(scorers[0].model.config) or 1 << 20, Counter[str]()

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


def vader() -> Reward:
    """VADER's compound sentiment of the response, -1 to 1. Source: Hutto and Gilbert 2014, ICWSM."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError("vaderSentiment is not installed", fix="pip install 'preftune[vader]'") from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda answers: [float(analyzer.polarity_scores(a.response)["compound"]) for a in answers]


def length() -> Reward:
    """The response's number of characters: a control that shows what rewards length."""
    return lambda answers: [float(len(a.response)) for a in answers]


def short() -> Reward:
    """Minus the number of characters: a control that shows what rewards brevity."""
    return lambda answers: [-float(len(a.response)) for a in answers]


def random() -> Reward:
    """A number between 0 and 1 that the text's hash decides: a control from which nothing can be learnt."""
    return lambda answers: [
        int.from_bytes(
            hashlib.sha256(f"{content(a.prompt)}\0{a.response}".encode("utf-8", "replace")).digest()[:6], "big"
        )
        / 2**48
        for a in answers
    ]


RULES: dict[str, Callable[..., Any]] = {"vader": vader, "length": length, "short": short, "random": random}
