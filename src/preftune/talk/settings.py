"""Sampling settings that can be changed during a chat with `/set NAME VALUE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from preftune.errors import ConfigError, did_you_mean
from preftune.model.generate import Sampling

#: name -> (field of Sampling, type, test, what is valid)
SETTINGS: Mapping[str, tuple[str, type, Callable[[float], bool], str]] = {
    "temperature": ("temperature", float, lambda x: 0 <= x < float("inf"), "a number from 0 on"),
    "top_p": ("top_p", float, lambda x: 0 < x <= 1, "a number above 0, up to 1"),
    "top_k": ("top_k", int, lambda x: x >= 0, "a whole number from 0 on (0 = no limit)"),
    "max_tokens": ("max_new_tokens", int, lambda x: 1 <= x <= 1 << 20, "a whole number from 1 on"),
    "seed": ("seed", int, lambda x: x >= 0, "a whole number from 0 on"),
}
OTHER_NAMES = {"max_new_tokens": "max_tokens", "temp": "temperature"}


def change(sampling: Sampling, text: str) -> Sampling:
    """Return `sampling` with the setting in `text`, "temperature 0.7" or "temperature=0.7". Raises ConfigError."""
    name, _, value = text.replace("=", " ", 1).strip().partition(" ")
    key = OTHER_NAMES.get(name.replace("-", "_"), name.replace("-", "_"))
    if key not in SETTINGS:
        raise ConfigError(f"unknown setting {name!r}; {did_you_mean(key, SETTINGS)}", where="/set")
    attribute, kind, valid, allowed = SETTINGS[key]
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not valid(number):
        fix = f"for example: /set {key} {getattr(Sampling(), attribute)}"
        raise ConfigError(f"{value.strip()!r} is not {allowed}", where=f"/set {key}", fix=fix)
    return replace(sampling, **{attribute: number})


def described(sampling: Sampling) -> str:
    """Return all settings as one line."""
    return ", ".join(f"{name} {getattr(sampling, SETTINGS[name][0])}" for name in SETTINGS)
