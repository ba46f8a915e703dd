"""Data settings on the command line: `data.KEY=VALUE`, a run's config, and options that are short for some of them.

Every command that reads rows takes the keys of a run's `data` section, so whatever a run trains on can be looked at,
scored and sampled from.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from preftune.config.load import apply_override, build, read_file
from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import (
    DataConfig,
    DPOConfig,
    Losses,
    ModelConfig,
    NoiseConfig,
    RewardConfig,
    Section,
    SFTConfig,
)
from preftune.errors import ConfigError, did_you_mean

SETTING = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")
#: A config belongs to the first of these that has all its sections.
KINDS: dict[str, type[Section]] = {
    "dpo": DPOConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "noise": NoiseConfig,
    "ppo": PPOConfig,
    "iterate": IterateConfig,
}


class Checking(Section):
    """What `data check` looks at: the sections of a run that decide what becomes of its data."""

    data: DataConfig
    model: ModelConfig | None = None
    loss: Losses | None = None
    method: Literal["dpo", "sft", "reward"] | None = None


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and settings. An argument is a setting if it begins like `key=` and is not an existing file."""
    settings = [one for one in arguments if SETTING.match(one) and not Path(one).exists()]
    return [one for one in arguments if one not in settings], settings


def data_section(
    source: str,
    settings: Sequence[str] | None,
    short: Mapping[str, Any],
    *,
    command: str,
    unused: Sequence[str] = (),
) -> DataConfig:
    """The data section that `settings` and the options in `short` make for `source`.

    `short` has the value of each option under its name, None for one that is not given. Raises ConfigError for a
    setting in `unused`, which the command has no use for, and for one that is given twice with different values.
    """
    raw: dict[str, Any] = {}
    places: dict[Any, str] = {}
    _apply(raw, places, settings or (), {"--data": ("data.train", source), **_named(short)}, ("data",), command)
    for key in raw["data"]:
        if key in unused:
            raise ConfigError(f"{command} has no use for data.{key}", where=f"data.{key}", fix="leave it out")
    return build(Checking, raw, places, command).data


def chat_options(template: str | None, arguments: str | None, as_chat: bool) -> dict[str, Any]:
    """The values of the options --chat-template, --chat-template-kwargs (a JSON object) and --as-chat."""
    try:
        values = json.loads(arguments) if arguments else None
    except ValueError as error:
        values = str(error)
    if not isinstance(values, dict | None):
        raise ConfigError(
            f"not a JSON object: {values}", where="--chat-template-kwargs", fix="e.g. '{\"enable_thinking\": false}'"
        )
    return {"--chat-template": template, "--chat-template-kwargs": values, "--as-chat": as_chat or None}


def checking(arguments: Sequence[str], config: Path | None, short: Mapping[str, Any], command: str) -> Checking:
    """The sections that `data check` looks at, from files, settings, options and a run's config."""
    files, settings = parted(arguments)
    raw, places, method = _sections_of(config) if config else ({}, {}, None)
    named = {"FILE": ("data.train", files[0] if len(files) == 1 else files)} if files else {}
    _apply(raw, places, settings, {**named, **_named(short)}, ("data", "model", "loss"), command)
    data = raw.get("data") or {}
    if isinstance(data, dict) and "train" not in data:
        fix = f"{command} FILE, or {command} --config run.yaml"
        raise ConfigError("no data file is named", where=command, fix=fix)
    if "loss" in raw and method is None:
        method = "dpo"
    return build(Checking, {**raw, "method": method}, places, str(config or command))


def _sections_of(config: Path) -> tuple[dict[str, Any], dict[Any, str], str | None]:
    """The sections data, model and loss of a run's config, and the method that it is for, if that can be told."""
    raw, places = read_file(config)
    kinds = [name for name, schema in KINDS.items() if set(raw) <= set(schema.model_fields)]
    if not kinds:
        known = {key for schema in KINDS.values() for key in schema.model_fields}
        wrong = next((key for key in raw if key not in known), None)
        if wrong is None:
            raise ConfigError("its sections belong to different methods", where=str(config))
        raise ConfigError(f"unknown key {wrong!r}; {did_you_mean(wrong, known)}", where=places[(wrong,)])
    if kinds[0] in ("ppo", "iterate"):
        raise ConfigError(
            f"this config is for preftune {kinds[0]}, which reads prompts",
            where=str(config),
            fix=f"check it with preftune {kinds[0]} {config} --dry-run",
        )
    method: str | None = kinds[0]
    if method == "noise":
        method = "reward" if raw.get("ranker") == "reward" else "dpo"
    elif method == "dpo" and not {"loss", "reference", "monitor"} & set(raw):
        method = None  # sft and reward have the same sections
    elif method == "reward" and not {"centre", "normalise"} & set(raw):
        method = None
    return {key: raw[key] for key in ("data", "model", "loss") if key in raw}, places, method


def _named(short: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The setting and the value of each option that is given: `--max-length` is data.max_length."""
    keys = {option: option.removeprefix("--").replace("-", "_") for option in short}
    names = {option: "model.path" if key == "model" else f"data.{key}" for option, key in keys.items()}
    return {option: (names[option], value) for option, value in short.items() if value is not None}


def _apply(
    raw: dict[str, Any],
    places: dict[Any, str],
    settings: Sequence[str],
    named: Mapping[str, tuple[str, Any]],
    sections: Sequence[str],
    command: str,
) -> None:
    """Apply settings and options to `raw`. Raises ConfigError for a setting of another section, and for two values."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, _ = setting.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and key and section in sections):
            raise ConfigError(_no_setting(name, equals, sections), where=f"{command} {setting}")
        apply_override(raw, places, setting)
        value: Any = raw
        for part in name.split("."):
            value = value[int(part) if isinstance(value, list) else part]
        _once(given, name, value, command)
    for option, (name, value) in named.items():
        _once(given, name, value, option)
        section, _, key = name.partition(".")
        if not isinstance(raw.get(section), dict):
            raw[section] = {}
        raw[section][key] = value
        places[(section, key)] = option


def _no_setting(name: str, equals: str, sections: Sequence[str]) -> str:
    """What is wrong with an argument that names no setting of the sections."""
    if not equals:
        return f"not a setting; write {sections[0]}.KEY=VALUE"
    bare = difflib.get_close_matches(name.rpartition(".")[2], list(DataConfig.model_fields), n=1, cutoff=0.75)
    near = f"did you mean data.{bare[0]}?" if bare else f"{did_you_mean(name.partition('.')[0], sections)}"
    return f"no setting of {', '.join(sections)}; {near}"


def _once(given: dict[str, Any], name: str, value: Any, where: str) -> None:
    before = given.setdefault(name, value)
    if before != value:
        raise ConfigError(f"{name} is given twice: {before} and {value}", where=where, fix="keep one of them")
