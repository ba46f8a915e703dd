"""Keywords of the training functions, and how they become a config."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel

from preftune.api.inputs import Held, function_name, plain_settings
from preftune.config.load import apply_override, build, read_file
from preftune.config.schema import DataConfig
from preftune.errors import ConfigError

C = TypeVar("C", bound=BaseModel)
Section = Mapping[str, Any]


class Tuning(TypedDict, total=False):
    """Sections and keys of every training config (docs/configuration.md)."""

    optim: Section
    train: Section
    batch: Section
    lora: Section | bool | None
    track: Sequence[str]


class DPOSettings(Tuning, total=False):
    """Those of preftune.dpo."""

    reference: Section
    monitor: Section | bool | None


class RewardSettings(Tuning, total=False):
    """Those of preftune.reward."""

    centre: float
    normalise: bool


class PPOSettings(Tuning, total=False):
    """Those of preftune.ppo."""

    value: Section
    rollout: Section
    ppo: Section


class IterateSettings(Tuning, total=False):
    """Those of preftune.iterate."""

    rounds: int
    prompts: int | None
    max_length: int
    reference: str
    sample: Section
    pairs: Section
    lr_decay: float
    stop: Section


class PromptSettings(TypedDict, total=False):
    """Keys of the section `data` for functions that read prompts."""

    format: str | Callable[..., Any]
    columns: Mapping[str, str]
    winner_values: Mapping[str, Any]
    ignore: Sequence[str]
    bad_rows: Literal["error", "drop"]
    max_dropped: float
    allow_empty_prompts: bool
    max_prompt_length: int | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any]
    as_chat: bool


class ScoreSettings(PromptSettings, total=False):
    """Keys of the section `data` for functions that read responses."""

    max_length: int
    overlong: Literal["truncate", "drop", "error"]
    pairs: Literal["all", "best-worst", "adjacent"]
    margin_from_scores: bool
    thinking: Literal["template", "keep"]
    allow_dropped_text: bool


class DataSettings(ScoreSettings, total=False):
    """Keys of the section `data` besides train and eval."""

    allow_overlap: bool


def data_section(source: Any, settings: Mapping[str, Any], held: Held, where: str) -> DataConfig:
    """The section `data` of a call whose keywords are its keys. `held` gets a format given as a function."""
    section = {**plain_settings(settings), "train": source}
    if "format" in settings:
        section["format"] = function_name(settings["format"], held)
    return build(DataConfig, section, source=where)


def resolved(
    schema: type[C],
    source: Any,
    overrides: Sequence[str],
    settings: dict[str, Any],
    where: str,
    path: str | None = None,
) -> C:
    """The config of a call: a YAML file, a dict, a config or nothing; then overrides; then keywords.

    `path` is the name of a model in memory where the config has none. Raises ConfigError with every problem at once.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if isinstance(source, schema) and not overrides and not settings:
        return source
    raw, places = _read(schema, source, where)
    for override in overrides:
        apply_override(raw, places, override)
    if path and not isinstance(raw.get("model"), dict):
        raw["model"] = {"path": path}
    for name, value in settings.items():
        _merge(raw, name, value)
        for old in [place for place in places if place[:1] == (name,)]:
            del places[old]
    return build(schema, raw, places, where)


def _read(schema: type[BaseModel], source: Any, where: str) -> tuple[dict[str, Any], dict[Any, str]]:
    if source is None:
        return {}, {}
    if isinstance(source, BaseModel):
        if not isinstance(source, schema):
            what = f"the config is a {type(source).__name__}, not a {schema.__name__}"
            raise ConfigError(what, where=where, fix=f"preftune.{schema.__name__}(...) makes one")
        return source.model_dump(), {}
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), {}
    if isinstance(source, str | os.PathLike):
        return read_file(os.fspath(source))
    raise ConfigError(
        f"the first argument is a config, not {type(source).__name__}",
        where=where,
        why="a config is a YAML file, a dict or a preftune config",
        fix="name the others: model=..., data=...",
    )


def _merge(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a section or a key. A dict changes keys of its section; a loss replaces the loss and its parameters."""
    before = raw.get(name)
    if isinstance(value, dict) and isinstance(before, dict) and name != "loss":
        for key, item in value.items():
            _merge(before, key, item)
    else:
        raw[name] = value
