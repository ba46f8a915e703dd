"""Keywords of the Python functions, and their conversion to a config."""

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


class CommonSettings(TypedDict, total=False):
    """Config keys that all training functions accept as keywords (docs/lookup/configuration.md)."""

    optim: Section
    train: Section
    batch: Section
    lora: Section | bool | None
    track: Sequence[str]
    track_names: Sequence[str]


class SFTSettings(CommonSettings, total=False):
    """Config keys that preftune.sft accepts as keywords."""

    best: Section | str | None
    samples: int


class DPOSettings(CommonSettings, total=False):
    """Config keys that preftune.dpo accepts as keywords."""

    best: Section | str | None
    reference: Section
    monitor: Section | bool | None
    report_pairs: int


class RewardSettings(CommonSettings, total=False):
    """Config keys that preftune.reward accepts as keywords."""

    best: Section | str | None
    centre: float
    normalise: bool
    report_pairs: int


class PPOSettings(CommonSettings, total=False):
    """Config keys that preftune.ppo accepts as keywords."""

    best: Section | str | None
    value: Section
    rollout: Section
    ppo: Section


class IterateSettings(CommonSettings, total=False):
    """Config keys that preftune.iterate accepts as keywords."""

    rounds: int
    prompts: int | None
    max_length: int
    reference: str
    sample: Section
    pairs: Section
    lr_decay: float
    stop: Section
    people: Section


class PromptSettings(TypedDict, total=False):
    """Keys of the section `data` that functions which read prompts accept as keywords."""

    format: str | Callable[..., Any]
    columns: Mapping[str, str]
    winner_values: Mapping[str, Any]
    where: Sequence[str]
    drop: str | None
    aspect: str
    ignore: Sequence[str]
    bad_rows: Literal["error", "drop"]
    max_dropped: float
    limit: int | None
    allow_empty_prompts: bool
    max_prompt_length: int | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any]
    as_chat: bool | Literal["auto"]
    system_message: Literal["template", "merge"]


class ScoreSettings(PromptSettings, total=False):
    """Keys of the section `data` that functions which read responses accept as keywords."""

    max_length: int
    overlong: Literal["truncate", "drop", "error"]
    pairs: Literal["all", "best-worst", "adjacent"]
    margin_from_scores: bool
    ties: Literal["drop", "half"]
    thinking: Literal["template", "keep", "unscored", "drop"]
    scored_turns: Literal["all", "last"]
    allow_dropped_text: bool


class DataSettings(ScoreSettings, total=False):
    """All keys of the section `data` except train and eval."""

    stream: bool
    shuffle_buffer: int
    allow_overlap: bool


def data_section(source: Any, settings: Mapping[str, Any], held: Held, where: str) -> DataConfig:
    """Build the section `data` from keywords. A function as format is added to `held`."""
    section = {**plain_settings(settings), "train": source}
    if "format" in settings:
        section["format"] = function_name(settings["format"], held)
    return build(DataConfig, section, source=where)


def resolve_config(
    schema: type[C],
    source: Any,
    overrides: Sequence[str],
    settings: dict[str, Any],
    where: str,
    path: str | None = None,
) -> C:
    """Build a config from `source` (YAML file, dict, config or None), then `overrides`, then keywords.

    `path` is model.path for a model in memory if the config has no model. Raises ConfigError that lists every problem.
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
        for path_of_key in [key for key in places if key[:1] == (name,)]:
            del places[path_of_key]
    return build(schema, raw, places, where)


def _read(schema: type[BaseModel], source: Any, where: str) -> tuple[dict[str, Any], dict[Any, str]]:
    if source is None:
        return {}, {}
    if isinstance(source, BaseModel):
        if not isinstance(source, schema):
            what = f"the config is a {type(source).__name__}, not a {schema.__name__}"
            raise ConfigError(what, where=where, fix=f"pass a preftune.{schema.__name__}")
        return source.model_dump(), {}
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), {}
    if isinstance(source, str | os.PathLike):
        return read_file(os.fspath(source))
    what = f"the first argument must be a config, not {type(source).__name__}"
    why = "a config is a YAML file, a dict or a preftune config"
    raise ConfigError(what, where=where, why=why, fix="pass other arguments by name: model=..., data=...")


def _merge(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a key or a section. A dict updates its section, but a loss replaces the previous loss and its parameters."""
    before = raw.get(name)
    if isinstance(value, dict) and isinstance(before, dict) and name != "loss":
        for key, item in value.items():
            _merge(before, key, item)
    else:
        raw[name] = value
