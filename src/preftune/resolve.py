"""From a name in the config to a function, and from its signature to what the config may say.

A name is a key of a table ("sigmoid") or a function in the user's own file ("my_losses.py:focal").
A function's keyword-only arguments are its parameters: the config may set exactly those. Its other
arguments are its inputs: whoever calls it provides them by name.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from preftune import objects
from preftune.errors import ConfigError, PreftuneError, did_you_mean

USERS = "preftune_user_"  # begins the module name of every file that `resolve` runs
#: What a user's code may raise that is reported to the user. SystemExit would end the run with its own exit code.
FAULTS = (Exception, SystemExit)


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
    if name.endswith(".py") and Path(name).is_file():
        raise ConfigError(f"{name} is a file; no function is named", where=where, fix=f"write {name}:FUNCTION")
    if not (colon and file.endswith(".py")):
        raise ConfigError(
            f"unknown name {name!r}; {did_you_mean(name, table)}",
            where=where,
            fix=f'use one of {", ".join(table)}, or "file.py:function" for a function of your own',
        )
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"no such file: {file}", where=where, fix="paths are relative to where the command runs")
    values = vars(_run(path, where))
    found = values.get(function)
    if not isinstance(found, FunctionType):
        own = [key for key, value in values.items() if isinstance(value, FunctionType)]
        what = f"{file} has no function {function!r}"
        if function in values:
            what = f"{function!r} in {file} is of type {type(found).__name__}, not a function"
        raise ConfigError(f"{what}; {did_you_mean(function, own)}", where=where)
    if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
        raise ConfigError(f"{function} is an async function", where=line_of(found), fix="write def, not async def")
    return found


def _run(path: Path, where: str) -> ModuleType:
    """The module that the user's file makes. Raises ConfigError that names the line which fails."""
    spec = importlib.util.spec_from_file_location(f"{USERS}{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        place = place_of(error) or str(path)
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{shown(error.filename)}:{error.lineno}"
        raise ConfigError(
            in_words(error), where=place, why=f"{where} names {path}, which fails to import", fix="repair the file"
        ) from error
    return module


def place_of(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """ "file:line" of the innermost line of the user's own code in the traceback of `error`.

    A user's own code is a file that `resolve` ran and the file of `function`. Where no such line was reached, as with
    arguments that do not fit, the line on which `function` begins; "" without one.
    """
    own = _code_of(function)

    def is_users(frame: FrameType) -> bool:
        name = str(frame.f_globals.get("__name__", ""))
        return name.startswith(USERS) or (own is not None and frame.f_code.co_filename == own.co_filename)

    lines = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if is_users(frame)]
    if lines:
        frame, line = lines[-1]
        return f"{shown(frame.f_code.co_filename)}:{line}"
    return line_of(function) if function else ""


def line_of(function: Callable[..., Any]) -> str:
    """ "file:line" on which `function` begins; "" for one that is not written in Python."""
    code = _code_of(function)
    return f"{shown(code.co_filename)}:{code.co_firstlineno}" if code else ""


def _code_of(function: Callable[..., Any] | None) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    if function is None:
        return None
    function = inspect.unwrap(function)
    call = function if hasattr(function, "__code__") else type(function).__call__  # of an object that can be called
    code = getattr(call, "__code__", None)
    return code if isinstance(code, CodeType) else None


def shown(file: str) -> str:
    """A file's path, relative to where the command runs if it is below."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def in_words(error: BaseException) -> str:
    """The kind of an exception and what it says."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require_one_argument(function: Callable[..., Any], name: str) -> None:
    """Raises ConfigError for a format function that cannot be called with a row alone."""
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be called with a row alone: {error}",
            where=line_of(function),
            fix="def NAME(row): ..., where row is a dict with the columns of a row",
        ) from error


def guarded(
    function: Callable[..., Any], name: str, spared: Callable[[BaseException], bool] = lambda _: False
) -> Callable[..., Any]:
    """`function`, whose exceptions become ConfigErrors that name its file and line. `spared` ones stay as they are."""

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except PreftuneError:
            raise
        except FAULTS as error:
            if spared(error):
                raise
            raise ConfigError(
                in_words(error), where=place_of(error, function), why=f"raised in {name}", fix="repair the function"
            ) from error

    return call


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
                f"{name!r} has no parameter {key!r}; {did_you_mean(key, parameters)}",
                where=f"{where}.{key}",
                fix=f"loss={name} replaces the whole section, its parameters too" if where == "loss" else "",
            )
    try:
        plain, hints = get_type_hints(function), get_type_hints(function, include_extras=True)
    except Exception as error:  # a name that the file does not define
        raise ConfigError(
            f"the annotations of {name!r} cannot be read: {in_words(error)}",
            where=line_of(function),
            fix="import the names that they use, or leave the annotations out",
        ) from error
    for key, value in given.items():
        allowed = {plain.get(key), *get_args(plain.get(key))}
        if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
            raise ConfigError(f"must be a number, not true or false, got {value}", where=f"{where}.{key}")
    required = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in given]
    if required:
        raise ConfigError(f"{name!r} needs {', '.join(required)}", where=where)
    schema: dict[str, Any] = {
        key: (hints.get(key, Any), ... if p.default is inspect.Parameter.empty else p.default)
        for key, p in parameters.items()
    }
    try:
        model = create_model("Parameters", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **schema)
    except Exception as error:  # a type that no config can hold, a name that begins with _
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"the parameters of {name!r} cannot be set in a config: {first_line}",
            where=line_of(function),
            fix="use numbers, text, true or false, and lists of them",
        ) from error
    try:
        return dict(model(**given))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{first['msg']}, got {first['input']!r}", where=f"{where}.{at}") from None
