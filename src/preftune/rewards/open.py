"""Open a reward by name: a model folder, implicit:POLICY,REFERENCE, judge:URL,MODEL, a function or a built-in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune import in_memory
from preftune.errors import ConfigError
from preftune.resolve import inputs_of, line_of, parameters_of, resolve
from preftune.rewards.chat_grades import open_chat_grades
from preftune.rewards.models import RewardModel, open_implicit
from preftune.rewards.reward import PromptResponse, Reward
from preftune.types import content


def open_reward(name: str, where: str = "reward", *, device: Any = None) -> Reward:
    """Open the reward called `name`. Raises ConfigError or ModelError if it does not exist or cannot be used."""
    if name.startswith("judge:"):
        return open_chat_grades(name.removeprefix("judge:"), where)
    if name.startswith("implicit:"):
        return open_implicit(name.removeprefix("implicit:"), where, device)
    is_file_function = name.rpartition(":")[0].endswith(".py") and not Path(name).expanduser().is_dir()
    if name not in BUILT_IN and not name.startswith(in_memory.FUNCTION) and not is_file_function:
        if "/" not in name and not Path(name).is_dir():
            resolve(name, BUILT_IN, where)  # raises, with the list of known names
        return RewardModel.open(name, where, device)
    function = resolve(name, BUILT_IN, where)
    if name in BUILT_IN:
        return function()  # type: ignore[no-any-return]
    required = [key for key, p in parameters_of(function).items() if p.default is p.empty]
    if tuple(inputs_of(function)) != ("prompts", "responses") or required:
        raise ConfigError(
            f"{name} has the arguments {', '.join([*inputs_of(function), *required]) or 'none'}",
            where=f"{where}, {line_of(function)}",
            why="a reward function takes prompts and responses and returns one reward per response",
            fix="write def reward(prompts: list[str], responses: list[str]) -> list[float | None]",
        )

    def reward(responses: Sequence[PromptResponse]) -> Sequence[float | None]:
        prompts = [content(r.prompt) for r in responses]
        rewards: Sequence[float | None] = function(prompts, [r.response for r in responses])
        return rewards

    reward.function = function  # type: ignore[attr-defined]
    return reward


def vader() -> Reward:
    """VADER's compound sentiment of the response, -1 to 1. Source: Hutto and Gilbert 2014, ICWSM."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        fix = "pip install 'preftune[vader]'"
        raise ConfigError("vaderSentiment is not installed", where="vader", fix=fix) from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda responses: [float(analyzer.polarity_scores(r.response)["compound"]) for r in responses]


def length() -> Reward:
    """The number of characters of the response: a control for a preference for long responses."""
    return lambda responses: [float(len(r.response)) for r in responses]


def short() -> Reward:
    """Minus the number of characters of the response: a control for a preference for short responses."""
    return lambda responses: [-float(len(r.response)) for r in responses]


def random() -> Reward:
    """A number in [0, 1) from a hash of prompt and response: a baseline that no policy can learn to increase."""
    return lambda responses: [
        int.from_bytes(
            hashlib.sha256(f"{content(r.prompt)}\0{r.response}".encode("utf-8", "replace")).digest()[:6], "big"
        )
        / 2**48
        for r in responses
    ]


BUILT_IN: dict[str, Callable[..., Any]] = {"vader": vader, "length": length, "short": short, "random": random}
