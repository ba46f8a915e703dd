"""Call a reward function, check what it returns, and explain missing rewards.

A reward maps responses to numbers. It reads text, so a reward model and the policy can have different tokenizers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from preftune.data.prompts import Prompt
from preftune.errors import ConfigError, ModelError, NumericError, PreftuneError
from preftune.formats.account import Account
from preftune.formulas import Floats
from preftune.model.generate import Sampled
from preftune.resolve import FAULTS, in_words, place_of
from preftune.types import PreferenceGroup, Text

GROUPS_PER_CALL = 64
MAX_REWARD = 1e30  # larger rewards would overflow when fp32 values are summed


@dataclass(frozen=True, slots=True)
class PromptResponse:
    """A prompt and a response to reward. `ended` is False if the response was cut off; `origin` is the file:line."""

    prompt: Text
    response: str
    ended: bool = True
    origin: str = ""


#: Returns one reward per response, or None for a response without a reward: one that is too long for the reward model,
#: or that a server refuses. An optional attribute `reasons` counts the reasons for None.
Reward = Callable[[Sequence[PromptResponse]], Sequence[float | None]]


def note_text_only(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """Note groups whose responses have fields other than their text, which judges and rewards do not read."""
    for group in groups:
        turns = [turn for response in group.responses if not isinstance(response, str) for turn in response]
        for name in sorted({name for turn in turns for name, _ in turn.extra}):
            account.note(f"{name!r} of a response is not shown: judges and rewards read only its text", group.origin)


def responses_to(prompt: Text, texts: Iterable[str], ended: Iterable[bool], origin: str) -> list[PromptResponse]:
    """Return the responses to one prompt."""
    return [PromptResponse(prompt, text, end, origin) for text, end in zip(texts, ended, strict=True)]


def responses_of(prompts: Sequence[Prompt], samples: Sequence[Sampled]) -> list[PromptResponse]:
    """Return all sampled responses with their prompts."""
    pairs = zip(prompts, samples, strict=True)
    return [response for p, s in pairs for response in responses_to(p.text, s.texts, s.ended, p.origin)]


def rewards_of(reward: Reward, responses: Sequence[PromptResponse], when: str) -> Floats:
    """Return the (S,) rewards, NaN where the reward is None.

    `when` names the step in error messages. Raises ConfigError if the function fails or returns anything but one
    number per response, and NumericError for a reward that is not finite.
    """
    try:
        returned: Any = reward(responses)
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            returned = list(returned)  # inside `try`, because this runs the body of a generator
    except PreftuneError:
        raise
    except FAULTS as error:
        failing = _first_failing(reward, responses)
        built_in = str(getattr(reward, "__module__", "")).startswith("preftune.")
        function = getattr(reward, "function", None if built_in else reward)
        place, row = place_of(error, function), f"{when}, {failing.origin}" if failing else when
        raise ConfigError(
            f"the reward function raised {in_words(error)}",
            where=place or row,
            why="; ".join([row] * bool(place) + [f"on the response {r.response!r}" for r in [failing] if r]),
            fix="correct the function and rerun the same command; completed results are saved",
        ) from error
    values = _to_array(returned, responses, when)
    is_none = np.array([value is None for value in returned], dtype=bool)
    if values.shape != (len(responses),):
        raise ConfigError(
            f"the reward function returned {len(returned)} rewards for {len(responses)} responses"
            + (f", with the shape {values.shape}" if values.ndim > 1 else ""),
            where=f"{when}, {responses[0].origin}",
            fix="return one number per response, in order",
        )
    bad = np.flatnonzero(~(np.abs(values) < MAX_REWARD) & ~is_none)
    if len(bad):
        first = responses[bad[0]]
        raise NumericError(
            f"the reward of {len(bad)} of {len(responses)} responses is {values[bad[0]]}",
            where=f"{when}, {first.origin}",
            why=f"the first of them is {first.response!r}",
            fix="return a finite number below 1e30, or None, for every text, including an empty one",
        )
    return values


def _to_array(returned: Any, responses: Sequence[PromptResponse], when: str) -> Floats:
    """Convert the returned list to an array. Raises ConfigError if it is not a list of numbers."""
    try:
        if not isinstance(returned, list):
            raise TypeError
        return np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(returned).__name__
        texts = [v for v in returned if isinstance(v, str | bytes)] if isinstance(returned, list) else []
        raise ConfigError(
            f"the reward function returned a {kind}{f' with {texts[0]!r}' if texts else ''}, not a list of numbers",
            where=f"{when}, {responses[0].origin}" if responses else when,
            why=str(error),
            fix="return one number per response, in order",
        ) from error


def require_rewards(reward: Reward, responses: Sequence[PromptResponse], when: str) -> Floats:
    """Return the rewards as `rewards_of` does. Raises ModelError if one is missing."""
    values = rewards_of(reward, responses, when)
    if np.isnan(values).any():
        raise missing_error(reward, responses, values, when)
    return values


def missing_error(reward: Reward, responses: Sequence[PromptResponse], values: Floats, when: str) -> ModelError:
    """Return the error for a command that needs a reward for every response."""
    missing = np.flatnonzero(np.isnan(values))
    return ModelError(
        f"{len(missing)} of {len(responses)} responses got no reward",
        where=f"{when}, {responses[missing[0]].origin}",
        why=why_missing(reward),
        fix="drop the longest prompts, sample shorter responses, or use a reward model with a longer context",
    )


def why_missing(reward: Reward | None) -> str:
    """Return the reasons for missing rewards with their counts, or "" if the reward does not record them."""
    reasons: Counter[str] = getattr(reward, "reasons", None) or Counter()
    return "; ".join(f"{number:,}: {reason}" for reason, number in reasons.most_common(3))


def rewards_by_group(
    reward: Reward, groups: Sequence[Sequence[PromptResponse]], when: str, progress: Callable[[int], None]
) -> list[list[float]]:
    """Return the rewards of each group's responses, NaN where missing; several groups are rewarded per call."""
    rewards: list[list[float]] = []
    for begin in range(0, len(groups), GROUPS_PER_CALL):
        chunk = groups[begin : begin + GROUPS_PER_CALL]
        values = iter(rewards_of(reward, [response for group in chunk for response in group], when).tolist())
        rewards += [list(islice(values, len(group))) for group in chunk]
        progress(len(rewards))
    return rewards


def _first_failing(reward: Reward, responses: Sequence[PromptResponse]) -> PromptResponse | None:
    """Return the first response on which the function fails when it is called with that response alone."""
    for response in responses:
        try:
            reward([response])
        except FAULTS:
            return response
    return None
