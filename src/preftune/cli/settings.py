"""Data settings on the command line: `data.KEY=VALUE`, the config of a run, and options that set one key each.

Every command that reads rows accepts the keys of the config section `data`, so that it reads the rows as a run does.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from preftune.config.commands import CONFIGS
from preftune.config.hints import suggest
from preftune.config.load import apply_override, build, read_file
from preftune.config.schema import DataConfig, Losses, ModelConfig
from preftune.config.section import Section
from preftune.errors import ConfigError, did_you_mean

SETTING = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")
MAIN_KEYS = {"data": "train", "model": "path", "loss": "name"}


class CheckSettings(Section):
    """The sections of a run's config that `data check` uses, and the training method if it is known."""

    data: DataConfig
    model: ModelConfig | None = None
    loss: Losses | None = None
    method: Literal["dpo", "sft", "reward"] | None = None


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into files and settings. A setting begins with `key=` and is not an existing file."""
    settings = [argument for argument in arguments if SETTING.match(argument) and not os.path.exists(argument)]
    return [argument for argument in arguments if argument not in settings], settings


def data_section(
    source: str, settings: Sequence[str] | None, options: Mapping[str, Any], *, command: str, unused: Sequence[str] = ()
) -> DataConfig:
    """Return the section `data` that `settings` and `options` define for the file `source`.

    `options` maps an option's name to its value, or to None if it is not set. Raises ConfigError for a key in `unused`
    and for a key with two different values.
    """
    raw: dict[str, Any] = {}
    places: dict[Any, str] = {}
    _apply(raw, places, settings or (), {"--data": ("data.train", source), **_keys_of(options)}, ("data",), command)
    for key in raw["data"]:
        if key in unused:
            raise ConfigError(f"{command} does not use data.{key}", where=f"data.{key}", fix="remove it")
    return build(CheckSettings, raw, places, command).data


def chat_options(template: str | None, arguments: str | None, as_chat: bool | None) -> dict[str, Any]:
    """Return the values of --chat-template, --chat-template-kwargs (parsed as a JSON object) and --as-chat."""
    try:
        values = json.loads(arguments) if arguments else None
    except ValueError as error:
        values = str(error)
    if not isinstance(values, dict | None):
        fix = "write an object, e.g. '{\"enable_thinking\": false}'"
        raise ConfigError(f"not a JSON object: {values}", where="--chat-template-kwargs", fix=fix)
    return {"--chat-template": template, "--chat-template-kwargs": values, "--as-chat": as_chat}


def check_settings(
    arguments: Sequence[str], config: Path | None, options: Mapping[str, Any], command: str
) -> CheckSettings:
    """Combine files, settings, options and a run's config into the sections that `data check` uses."""
    files, settings = split_arguments(arguments)
    raw, places, method = _sections_of(config) if config else ({}, {}, None)
    named = {"FILE": ("data.train", files[0] if len(files) == 1 else files)} if files else {}
    _apply(raw, places, settings, {**named, **_keys_of(options)}, ("data", "model", "loss"), command)
    data = raw.get("data") or {}
    if isinstance(data, dict) and "train" not in data:
        fix = f"run {command} FILE, or {command} --config run.yaml"
        raise ConfigError("the data file is missing", where=command, fix=fix)
    if "loss" in raw and method is None:
        method = "dpo"
    return build(CheckSettings, {**raw, "method": method}, places, str(config or command))


def _sections_of(config: Path) -> tuple[dict[str, Any], dict[Any, str], str | None]:
    """Read the sections data, model and loss of a run's config, and the training method if they determine it."""
    raw, places = read_file(config)
    methods = [name for name, schema in CONFIGS.items() if set(raw) <= set(schema.model_fields)]
    if not methods:
        keys = {key for schema in CONFIGS.values() for key in schema.model_fields}
        unknown = next((key for key in raw if key not in keys), None)
        if unknown is None:
            fix = f"keep the sections of one method: {', '.join(CONFIGS)}"
            raise ConfigError("the sections belong to different training methods", where=str(config), fix=fix)
        closest = max(CONFIGS.values(), key=lambda schema: len(set(raw) & set(schema.model_fields)))
        raise ConfigError(f"unknown key {unknown!r}; {suggest(closest, (unknown,))}", where=places[(unknown,)])
    if methods[0] in ("ppo", "iterate"):
        what = f"this is a config of preftune {methods[0]}, which reads prompts, not preference data"
        raise ConfigError(what, where=str(config), fix=f"check it with preftune {methods[0]} {config} --dry-run")
    method: str | None = methods[0]
    if method == "noise":
        method = "reward" if raw.get("ranker") == "reward" else "dpo"
    elif method == "dpo" and not {"loss", "reference", "monitor"} & set(raw):
        method = None  # sft and reward have the same sections
    elif method == "reward" and not {"centre", "normalise"} & set(raw):
        method = None
    return {key: raw[key] for key in ("data", "model", "loss") if key in raw}, places, method


def _keys_of(options: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Map each option that is set to its config key and value: --max-length is data.max_length."""
    keys = {option: f"data.{option.removeprefix('--').replace('-', '_')}" for option in options}
    keys |= {"--model": "model.path"}
    return {option: (keys[option], value) for option, value in options.items() if value is not None}


def _apply(
    raw: dict[str, Any],
    places: dict[Any, str],
    settings: Sequence[str],
    options: Mapping[str, tuple[str, Any]],
    sections: Sequence[str],
    command: str,
) -> None:
    """Apply settings and options to `raw`. Raises ConfigError for an unknown section and for a key with two values."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and key and section in sections):
            raise ConfigError(_not_a_setting(name, equals, text, sections), where=f"{command} {setting}")
        apply_override(raw, places, setting)
        value: Any = raw
        for part in name.split("."):
            value = value[int(part) if isinstance(value, list) else part]
        _require_one_value(values, name, value, command)
    for option, (name, value) in options.items():
        _require_one_value(values, name, value, option)
        section, _, key = name.partition(".")
        if not isinstance(raw.get(section), dict):
            raw[section] = {}
        raw[section][key] = value
        places[(section, key)] = option


def _not_a_setting(name: str, equals: str, value: str, sections: Sequence[str]) -> str:
    """Describe an argument that is not a setting of one of the sections."""
    if not equals:
        return f"this is not a setting; write {sections[0]}.KEY=VALUE"
    if name in sections:
        return f"{name} is a section; write {name}.{MAIN_KEYS[name]}={value}"
    close = difflib.get_close_matches(name.rpartition(".")[2], list(DataConfig.model_fields), n=1, cutoff=0.75)
    hint = f"did you mean data.{close[0]}?" if close else did_you_mean(name.partition(".")[0], sections)
    return f"{name!r} is not a setting of {', '.join(sections)}; {hint}"


def _require_one_value(values: dict[str, Any], name: str, value: Any, where: str) -> None:
    before = values.setdefault(name, value)
    if before != value:
        raise ConfigError(f"{name} is set to both {before} and {value}", where=where, fix="remove one of them")
