"""Open a reward by name: a model folder, implicit:POLICY,REFERENCE, judge:URL,MODEL, vader, a function or a control."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from preftune import objects
from preftune.errors import ConfigError
from preftune.resolve import inputs_of, line_of, parameters_of, resolve
from preftune.rewards.chat_grades import graded
from preftune.rewards.models import RewardModel, implicit
from preftune.rewards.reward import Answer, Reward
from preftune.types import content


def open_reward(name: str, where: str = "reward", *, dtype: torch.dtype = torch.float32, device: Any = None) -> Reward:
    """The reward called `name`. Raises ConfigError or ModelError for one that cannot be had."""
    if name.startswith("judge:"):
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
