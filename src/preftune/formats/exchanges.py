"""Dialogues that are stored as exchanges, a question with its answer, instead of as messages."""

from __future__ import annotations

from typing import Any

#: Names of the two texts of an exchange: [{"input": "...", "output": "..."}, ...] (LDJnr/Capybara, Firefly, MOSS, ...).
NAMES = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("human", "bot"),
    ("user", "bot"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("query", "response"),
    ("question", "answer"),
)
#: Fields of an exchange that only number it.
COUNTERS = {"id", "index", "idx", "turn", "turn_id", "round"}


def exchanges_of(value: Any) -> list[dict[str, str]] | None:
    """Return the messages of a list of exchanges, or None for any other value."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return None
    names = next((names for names in NAMES if all(_is_exchange(item, names) for item in value)), None)
    if names is None:
        return None
    roles = ("user", "assistant")
    return [{"role": role, "content": item[name]} for item in value for role, name in zip(roles, names, strict=True)]


def _is_exchange(item: dict[str, Any], names: tuple[str, str]) -> bool:
    return set(names) <= item.keys() <= {*names, *COUNTERS} and all(isinstance(item[name], str) for name in names)


def alternating(texts: list[str]) -> list[dict[str, str]]:
    """Return the messages of a dialogue of texts, which begins with the user (GAIR/lima, stingning/ultrachat)."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
