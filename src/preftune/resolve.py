"""From a name in the config to a function, and from its signature to what the config may say.

A name is a key of a table ("sigmoid") or a function in the user's own file ("my_losses.py:focal").
A function's keyword-only arguments are its parameters: the config may set exactly those. Its other
arguments are its inputs: whoever calls it provides them by name.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from preftune import objects
from preftune.errors import ConfigError, did_you_mean


def resolve(name: str, table: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
    """The function called `name` in `table`, or the one that "file.py:function" names. Runs that file.

    Functions that were given in memory have names of their own (objects.py).
    """
    held = objects.function(name, where)
    if held:
        return held
    if name in table:
        return table[name]
    file, colon, function = name.rpartition(":")
    if not (colon and file.endswith(".py")):
        raise ConfigError(
            f"unknown name {name!r}; {did_you_mean(name, table)}",
            where=where,
            fix=f'use one of {", ".join(table)}, or "file.py:function" for a function of your own',
        )
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"no such file: {file}", where=where, fix="paths are relative to where the command runs")
    spec = importlib.util.spec_from_file_location(f"preftune_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{file} failed to import: {type(error).__name__}: {error}", where=where) from error
    found = getattr(module, function, None)
    if not isinstance(found, FunctionType):
        own = [key for key, value in vars(module).items() if isinstance(value, FunctionType)]
        raise ConfigError(f"{file} has no function {function!r}; {did_you_mean(function, own)}", where=where)
    return found


def inputs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that the caller provides."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments: what the config may set."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def bind(function: Callable[..., Any], given: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """`given` checked and converted against the parameters of `function`, defaults filled in.

    Raises ConfigError for a parameter that the function does not have, a wrong type or a value out of range.
    """
    parameters = parameters_of(function)
    for key in given:
        if key not in parameters:
            raise ConfigError(
                f"{name!r} has no parameter {key!r}; {did_you_mean(key, parameters)}", where=f"{where}.{key}"
            )
    plain = get_type_hints(function)
    for key, value in given.items():
        allowed = {plain.get(key), *get_args(plain.get(key))}
        if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
            raise ConfigError(f"must be a number, not true or false, got {value}", where=f"{where}.{key}")
    hints = get_type_hints(function, include_extras=True)
    required = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in given]
    if required:
        raise ConfigError(f"{name!r} needs {', '.join(required)}", where=where)
    schema: dict[str, Any] = {
        key: (hints.get(key, Any), ... if p.default is inspect.Parameter.empty else p.default)
        for key, p in parameters.items()
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **schema)
    try:
        return dict(model(**given))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{first['msg']}, got {first['input']!r}", where=f"{where}.{at}") from None
