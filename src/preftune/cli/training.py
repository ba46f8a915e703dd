"""The arguments of the training commands: a config file or none, options for the most frequent keys, and overrides."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.config.commands import CONFIGS
from preftune.config.hints import suggest
from preftune.config.load import Places, apply_override, build, read_file
from preftune.errors import ConfigError
from preftune.sources.files import is_data_file


def config_from(
    method: str,
    arguments: Sequence[str],
    model: str | None = None,
    data: Sequence[str] = (),
    lora: bool = False,
    out: str | None = None,
) -> Any:
    """Return the config of a training command.

    The config file comes first, then the options, then the overrides `section.key=value`. Raises ConfigError that lists
    every problem, and for a key that an option and an override set to different values.
    """
    command = "preftune data noise" if method == "noise" else f"preftune {method}"
    overrides = [argument for argument in arguments if "=" in argument and not os.path.exists(argument)]
    files = [argument for argument in arguments if argument not in overrides]
    if len(files) > 1:
        what = f"{len(files)} config files: {', '.join(files)}"
        raise ConfigError(what, where=command, fix="pass one config file, or none; data files follow --data")
    if not (files or overrides or model or data):
        fix = (
            f"run {command} --model MODEL --data FILE, or {command} CONFIG.yaml; preftune init {method} writes a config"
        )
        raise ConfigError("there is neither a config file nor a model and data", where=command, fix=fix)
    if files:
        _require_config_file(files[0], method, command)
    raw, places = read_file(files[0]) if files else ({}, {})
    _require_own_config(raw, files, method)
    _apply_options(raw, places, {"--model": model, "--data": _one(data), "--out": out}, lora)
    for override in overrides:
        _require_same(raw, places, override)
        apply_override(raw, places, override)
    if lora and not isinstance(raw.get("lora"), dict):
        what = f"--lora trains an adapter, and {places[('lora',)].removeprefix('override ')} turns it off"
        raise ConfigError(what, where="--lora", fix="remove one of them")
    missing = "" if files else _missing(raw)
    if missing:
        raise ConfigError(f"{missing} is missing", where=command, fix=f"add {_OPTIONS[missing]}, or pass a config file")
    return build(CONFIGS[method], raw, places, files[0] if files else command, lambda: _loss_problems(raw.get("loss")))


def _loss_problems(loss: Any) -> list[str]:
    """Return the problems of a loss and its parameters. They need torch, so they are only read with other problems."""
    from preftune.config.schema import terms_of
    from preftune.config.values import check_loss, read_loss

    try:
        terms = terms_of(check_loss(read_loss(loss))) if loss is not None else []
    except ValueError:  # the schema has reported it
        return []
    if not terms:
        return []
    from preftune.methods.objective import bind_objective

    try:
        bind_objective(terms)
    except ConfigError as error:
        return [str(error)]
    return []


def _require_config_file(file: str, method: str, command: str) -> None:
    """Raise ConfigError for a data file, a model folder and a file that does not exist."""
    argument = shlex.quote(file)
    if is_data_file(file):
        raise ConfigError("this is not a config file", where=file, fix=f"pass data as --data {argument}")
    if any(os.path.isfile(os.path.join(file, name)) for name in ("config.json", "manifest.json")):
        raise ConfigError("this is a model, not a config file", where=file, fix=f"pass models as --model {argument}")
    if not os.path.exists(file):
        fix = f"{_configs_near(file)}; or run {command} --model MODEL --data FILE, which needs no file"
        where = file if len(file) < 200 else f"{file[:200]}..."
        out = argument if where == file and file.endswith((".yaml", ".yml")) else "FILE"
        fix += f"; or write one with preftune init {method} --out {out}"
        raise ConfigError("no such config file", where=where, fix=fix)


def _configs_near(file: str) -> str:
    """Return which config files exist where `file` was expected, the most similar names first."""
    parent = os.path.dirname(file)
    folder = Path(parent) if os.path.isdir(parent) else Path()
    names = sorted(path.name for path in folder.glob("*.y*ml") if not path.name.startswith("."))
    close = difflib.get_close_matches(os.path.basename(file)[:200], names, n=8, cutoff=0.5)
    shown = [shlex.quote(str(folder / name)) for name in [*close, *(name for name in names if name not in close)][:8]]
    return f"pass one of {', '.join(shown)}" if shown else "check the path"


def _require_own_config(raw: dict[str, Any], files: Sequence[str], method: str) -> None:
    """Raise ConfigError for the config of another program."""
    if not files or set(raw) & set(CONFIGS[method].model_fields):
        return
    from preftune.moving.read import TOOLS, recognise

    try:
        tool = recognise(raw, files[0])
    except ConfigError:  # it is not one of theirs either
        return
    what, fix = f"this is a config of {TOOLS[tool]}", f"run preftune import-config {files[0]} --out {method}.yaml"
    raise ConfigError(what, where=files[0], fix=fix)


KEYS = {"--model": ("model", "path"), "--data": ("data", "train"), "--out": ("out",)}
_OPTIONS = {"model.path": "--model MODEL", "data.train": "--data FILE"}


def _one(values: Sequence[str]) -> Any:
    """Return the only value, a list of several, or None."""
    return (values[0] if len(values) == 1 else list(values)) if values else None


def _apply_options(raw: dict[str, Any], places: Places, options: dict[str, Any], lora: bool) -> None:
    for option, value in options.items():
        if value is None:
            continue
        *section, key = KEYS[option]
        target = raw
        for name in section:
            if not isinstance(target.get(name), dict):
                target[name] = {}
            target = target[name]
        target[key] = value
        places[KEYS[option]] = option
    if lora and not raw.get("lora"):
        raw["lora"] = {}
        places[("lora",)] = "--lora"


def _require_same(raw: dict[str, Any], places: Places, override: str) -> None:
    """Raise ConfigError if an option has set the key of `override` to a different value."""
    name, _, value = override.partition("=")
    path = tuple(name.split("."))
    option = places.get(path, "")
    if option.startswith("--") and path != ("lora",):
        target: Any = raw
        for part in path:
            target = target[part]
        if target != value:
            what = f"{name} is set to {target} by {option} and to {value} by {override}"
            raise ConfigError(what, where=option, fix="remove one of them")


def _missing(raw: dict[str, Any]) -> str:
    """Return the first required key that is not set."""
    sections: dict[str, Any] = {
        name: raw.get(name) if isinstance(raw.get(name), dict) else {} for name in ("model", "data")
    }
    if "path" not in (sections["model"] or {}) and not isinstance(raw.get("model"), str):
        return "model.path"
    return "data.train" if "train" not in (sections["data"] or {}) and not isinstance(raw.get("data"), str) else ""


def unknown_option(arguments: Sequence[str], option: str) -> str:
    """Return what to write instead of an option that a training command does not have, or ""."""
    method = next((argument for argument in arguments if not argument.startswith("-")), "")
    if method not in CONFIGS:
        return ""
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    if "." in name:
        return f"write {name}={_value_after(arguments, option) or 'VALUE'}, without dashes"
    hint = suggest(CONFIGS[method], (name,))
    if not hint.startswith("did you mean"):
        return ""
    key = hint.removeprefix("did you mean ").removesuffix("?").partition(" or ")[0]
    return f"{hint} Config keys have no dashes: write {key}={_value_after(arguments, option) or 'VALUE'}"


def _value_after(arguments: Sequence[str], option: str) -> str:
    """Return the value of an option, as --option=VALUE or --option VALUE; "" without one."""
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        name, equals, value = argument.partition("=")
        if name == option.partition("=")[0]:
            return value if equals else "" if following.startswith("-") else following
    return ""


def instead_of(error: Any, arguments: Sequence[str]) -> str:
    """Return what to write instead of an unknown option of a training command, or ""."""
    option = getattr(error, "option_name", None)
    if not option:
        return ""
    names = {name.lstrip("-"): name for name in getattr(error, "possibilities", None) or ()}
    similar = difflib.get_close_matches(option.lstrip("-"), list(names), cutoff=0.7)
    return f"did you mean {names[similar[0]]}?" if similar else unknown_option(arguments, option)
