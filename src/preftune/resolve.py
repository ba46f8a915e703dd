"""Find the function that a config names, and check the parameters that the config sets for it.

A name is a built-in name ("sigmoid") or a function in a file of the user ("my_losses.py:focal").
The function's keyword-only arguments are its parameters, which the config can set. Its other arguments
are its inputs, which the caller passes by name.
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

from preftune import in_memory, owners
from preftune.errors import ConfigError, PreftuneError, did_you_mean, plain_problem

USER_MODULE = "preftune_user_"  # prefix of the module name of every user file
#: Exceptions of user code that are reported as errors. SystemExit is one: it would end the run with its own exit code.
FAULTS = (Exception, SystemExit)


def resolve(name: str, table: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
    """Return the function `name` of `table`, or the function that "file.py:function" names; the file is executed.

    Names of functions passed in memory (see in_memory.py) are also accepted. Raises ConfigError.
    """
    held = in_memory.function(name, where)
    if held:
        return held
    if name in table:
        return table[name]
    file, colon, function = name.rpartition(":")
    if name.endswith(".py") and Path(name).is_file():
        raise ConfigError(f"{name} is a file, not a function", where=where, fix=f"write {name}:FUNCTION")
    if not (colon and file.endswith(".py")):
        fix = f'use one of {", ".join(table)}, or write "file.py:function" to use your own function'
        raise ConfigError(f"unknown name {name!r}; {did_you_mean(name, table)}", where=where, fix=fix)
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"no such file: {file}", where=where, fix="write the path relative to the current folder")
    values = vars(_execute(path, name, where))
    value = values.get(function)
    if not isinstance(value, FunctionType):
        functions = [key for key, other in values.items() if isinstance(other, FunctionType)]
        what = f"{file} has no function {function!r}"
        if function in values:
            what = f"{function!r} in {file} is of type {type(value).__name__}, not a function"
        raise ConfigError(f"{what}; {did_you_mean(function, functions)}", where=where)
    if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
        raise ConfigError(f"{function} is an async function", where=line_of(value), fix="write def, not async def")
    return value


def _execute(path: Path, name: str, where: str) -> ModuleType:
    """Execute a user file and return its module.

    Raises ConfigError for a file that another user can have written, and one that names the line that failed.
    """
    why, fix = f"{where} names {path}, which cannot be imported", "repair the file"
    try:
        source = owners.read_code(path, name, where)
    except OSError as error:
        raise ConfigError(in_words(error), where=str(path), why=why, fix="make the file readable") from error
    spec = importlib.util.spec_from_file_location(f"{USER_MODULE}{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    try:
        exec(compile(source, str(path.absolute()), "exec", dont_inherit=True), vars(module))
    except FAULTS as error:
        place = place_of(error) or str(path)
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{display_path(error.filename)}:{error.lineno}"
        raise ConfigError(in_words(error), where=place, why=why, fix=fix) from error
    return module


def place_of(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """Return "file:line" of the innermost line of user code in the traceback of `error`.

    User code is every file that `resolve` executed, and the file of `function`. If the traceback has no line of user
    code (a call with wrong arguments, for example), return the first line of `function`, or "" without a function.
    """
    code = _code_of(function)

    def is_user_code(frame: FrameType) -> bool:
        name = str(frame.f_globals.get("__name__", ""))
        return name.startswith(USER_MODULE) or (code is not None and frame.f_code.co_filename == code.co_filename)

    lines = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if is_user_code(frame)]
    if lines:
        frame, line = lines[-1]
        return f"{display_path(frame.f_code.co_filename)}:{line}"
    return line_of(function) if function else ""


def line_of(function: Callable[..., Any]) -> str:
    """Return "file:line" of the first line of `function`, or "" if it is not written in Python."""
    code = _code_of(function)
    return f"{display_path(code.co_filename)}:{code.co_firstlineno}" if code else ""


def _code_of(function: Callable[..., Any] | None) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    if function is None:
        return None
    function = inspect.unwrap(function)
    call = function if hasattr(function, "__code__") else type(function).__call__  # a callable object
    code = getattr(call, "__code__", None)
    return code if isinstance(code, CodeType) else None


def display_path(file: str) -> str:
    """Return the absolute path of a file, or its path relative to the current folder if it is inside."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def in_words(error: BaseException) -> str:
    """Return the type and the message of an exception."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require_one_argument(function: Callable[..., Any], name: str) -> None:
    """Raise ConfigError if a format function cannot be called with one argument, the row."""
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        what = f"{name} cannot be called with one argument: {error}"
        fix = "define it as def NAME(row): ..., where row is a dict of column names and values"
        raise ConfigError(what, where=line_of(function), fix=fix) from error


def guarded(
    function: Callable[..., Any], name: str, let_through: Callable[[BaseException], bool] = lambda _: False
) -> Callable[..., Any]:
    """Wrap a user's function: its exceptions become ConfigErrors with file and line, except those to `let_through`."""

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except PreftuneError:
            raise
        except FAULTS as error:
            if let_through(error):
                raise
            raise ConfigError(
                in_words(error), where=place_of(error, function), why=f"raised in {name}", fix="repair the function"
            ) from error

    return call


def inputs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the inputs: all arguments that are not keyword-only."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments, which the config can set."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def bind(function: Callable[..., Any], settings: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """Check and convert `settings` by the signature of `function`, and add its default values.

    Raises ConfigError for an unknown or missing parameter, a wrong type or a value out of range.
    """
    parameters = parameters_of(function)
    for key in settings:
        if key not in parameters:
            what = f"{name!r} has no parameter {key!r}; {did_you_mean(key, parameters)}"
            fix = f"loss={name} replaces the whole section, including its parameters" if where == "loss" else ""
            raise ConfigError(what, where=f"{where}.{key}", fix=fix)
    try:
        plain, hints = get_type_hints(function), get_type_hints(function, include_extras=True)
    except Exception as error:  # an annotation uses an undefined name
        what = f"the annotations of {name!r} cannot be read: {in_words(error)}"
        fix = "import the names that the annotations use, or remove the annotations"
        raise ConfigError(what, where=line_of(function), fix=fix) from error
    for key, value in settings.items():
        allowed = {plain.get(key), *get_args(plain.get(key))}
        if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
            what = f"must be a number, not true or false, got {value}"
            raise ConfigError(what, where=f"{where}.{key}", fix=f"set {key} to a number")
    required = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in settings]
    if required:
        fix = f"set {', '.join(f'{where}.{key}' for key in required)}"
        raise ConfigError(f"{name!r} requires {', '.join(required)}", where=where, fix=fix)
    schema: dict[str, Any] = {
        key: (hints.get(key, Any), ... if p.default is inspect.Parameter.empty else p.default)
        for key, p in parameters.items()
    }
    try:
        model = create_model("Parameters", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **schema)
    except Exception as error:  # an unsupported type, or a name that begins with _
        first_line = str(error).partition("\n")[0]
        what = f"the parameters of {name!r} cannot be set in a config: {first_line}"
        fix = "use numbers, strings, booleans, or lists of these"
        raise ConfigError(what, where=line_of(function), fix=fix) from error
    try:
        return dict(model(**settings))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        what, fix = f"{plain_problem(first)}, got {first['input']!r}", f"set {at} to a valid value"
        raise ConfigError(what, where=f"{where}.{at}", fix=fix) from None
