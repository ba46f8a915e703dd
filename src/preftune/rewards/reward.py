"""What a reward is: a function from responses to numbers, and how it is called and checked.

Every reward reads text, so a reward model may have another tokenizer than the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preftune.data.prompts import Prompt
from preftune.errors import ConfigError, ModelError, NumericError, PreftuneError
from preftune.formats.account import Account
from preftune.model.generate import Sampled
from preftune.resolve import FAULTS, in_words, place_of
from preftune.types import PreferenceGroup, Text

Floats = npt.NDArray[np.float64]


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
