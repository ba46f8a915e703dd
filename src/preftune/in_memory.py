"""Give in-memory rows, functions and models a name, so that a config, which holds only text, can refer to them.

The Python API registers objects with `holding`. Names are looked up here by sources/read.py (rows), resolve.py
(functions) and lifecycle/open_policy.py (models).

    memory:data-1f2e3a4b5c6d7e8f        rows, with a hash of their content
    memory:policy-1f2e3a4b5c6d7e8f      a model saved in a temporary folder, with a hash of its weights
    python:my_module.my_loss-1f2e3a4b   a function, with a hash of its source
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from preftune.errors import ConfigError, DataError

MEMORY, FUNCTION = "memory:", "python:"
DEPTH = 4  # levels of nested functions that a hash includes


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows passed in memory. Row i has the origin `label[i]`; `digest` is a hash of all rows."""

    label: str
    rows: tuple[Any, ...]
    digest: str

    @property
    def name(self) -> str:
        return f"{MEMORY}{self.label}-{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Function:
    """A function passed in memory; `digest` is a hash of its source."""

    call: Callable[..., Any]
    digest: str

    @property
    def name(self) -> str:
        """The module and name of the function, without the hash."""
        module = getattr(self.call, "__module__", None) or "?"
        name = getattr(self.call, "__qualname__", type(self.call).__qualname__)
        return f"{FUNCTION}{module}.{name}"

    @property
    def name_with_hash(self) -> str:
        """The name with a hash of the source, so that it changes when the source does."""
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model passed in memory, which was saved to `folder`."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{MEMORY}{self.folder.name}"


Object = Rows | Function | StoredModel
_OBJECTS: ContextVar[Mapping[str, Object]] = ContextVar("preftune_objects", default={})  # noqa: B039 - never mutated


@contextmanager
def holding(objects: Mapping[str, Object]) -> Iterator[None]:
    """Make the names of `objects` valid inside this context, for the current thread only."""
    token = _OBJECTS.set({**_OBJECTS.get(), **objects})
    try:
        yield
    finally:
        _OBJECTS.reset(token)


def rows(name: str) -> Rows | None:
    """Return the rows with this name, or None if the name does not denote in-memory rows.

    Raises DataError if the rows are not available, because an earlier call received them.
    """
    if not name.startswith(MEMORY) or name.startswith(f"{MEMORY}//"):  # a URL of fsspec
        return None
    held = _OBJECTS.get().get(name)
    if not isinstance(held, Rows):
        raise DataError(
            "these rows were passed in memory and are no longer available",
            where=name,
            why="the config holds only a hash of the rows",
            fix="call preftune from Python with the same rows, or write them to a file and set data.train=FILE",
        )
    return held


def function(name: str, where: str) -> Callable[..., Any] | None:
    """Return the function with this name, or None if the name does not denote an in-memory function.

    Raises ConfigError if the function is not available, because an earlier call received it.
    """
    if not name.startswith(FUNCTION):
        return None
    held = _OBJECTS.get().get(name)
    if not isinstance(held, Function):
        raise ConfigError(
            f"{name!r} was passed as a Python function and is no longer available",
            where=where,
            why="the config holds only the function's name and a hash of its source",
            fix='call preftune from Python with the function, or put it into a file and write "file.py:function"',
        )
    return held.call


def digest_of(name: str) -> str:
    """Return the hash of the in-memory rows or function with this name, or "" for any other name."""
    held = _OBJECTS.get().get(name)
    return held.digest if isinstance(held, Rows | Function) else ""


def model_path(name: str) -> str:
    """Return the folder of an in-memory model; any other name is returned unchanged."""
    held = _OBJECTS.get().get(name)
    return str(held.folder) if isinstance(held, StoredModel) else name


def as_rows(values: Iterable[Any], label: str) -> Rows:
    """Convert `values` to rows as read from JSONL: tuples and arrays to lists, NumPy scalars to Python numbers."""
    rows = tuple(plain(value) for value in values)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_stable_text).encode() + b"\n")
    return Rows(label, rows, digest.hexdigest())


def plain(value: Any) -> Any:
    """Convert `value` to JSON types. An object that has no JSON type, such as an image, is returned unchanged."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):  # also an instance of a subclass, such as numpy.float64
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(getattr(value, "tolist", None)):  # NumPy arrays and scalars, tensors
        return plain(value.tolist())
    return value


def _stable_text(value: Any) -> str:
    """Text of an object without a JSON type, for the hash. It has no memory address, which differs between runs."""
    if callable(getattr(value, "tobytes", None)):
        return f"{type(value).__qualname__} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return f"{type(value).__qualname__} {re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))}"


def as_function(call: Callable[..., Any]) -> Function:
    """Wrap `call` with a hash of its source, its default values and the plain values that it captured."""
    digest = hashlib.sha256("\n".join(_hash_parts(call, DEPTH)).encode("utf-8", "replace")).hexdigest()
    return Function(call if isinstance(call, FunctionType | MethodType) else _as_plain_function(call), digest)


def _as_plain_function(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a partial, a class or a callable object in a function with the same signature and annotations."""
    core = call
    while isinstance(core, functools.partial):
        core = core.func
    inner: Any = core
    if not isinstance(core, FunctionType | MethodType):
        inner = core.__init__ if isinstance(core, type) else type(core).__call__  # type: ignore[misc]

    @functools.wraps(inner)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        return call(*arguments, **keywords)

    named = core if hasattr(core, "__qualname__") else type(core)  # messages show the name that the user wrote
    wrapper.__module__, wrapper.__qualname__ = str(named.__module__), named.__qualname__
    wrapper.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return wrapper


def _hash_parts(call: Any, depth: int) -> Iterator[str]:
    """Yield the texts that the hash of a function is made of: its source, default values and captured values."""
    if isinstance(call, functools.partial):
        yield f"partial {_values([call.args, call.keywords])}"
        yield from _hash_parts(call.func, depth)
        return
    if isinstance(call, MethodType):
        yield f"of {_values(getattr(call.__self__, '__dict__', {}))}"
        call = call.__func__
    elif not isinstance(call, FunctionType | type):
        yield f"of {_values(getattr(call, '__dict__', {}))}"
        call = type(call)
    yield _source(call)
    yield _values([getattr(call, "__defaults__", None), getattr(call, "__kwdefaults__", None)])
    names = getattr(getattr(call, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(call, "__closure__", None) or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue
        yield f"{name} = {_values(value)}"
        if isinstance(value, FunctionType) and depth:
            yield from _hash_parts(value, depth - 1)


def _source(call: Any) -> str:
    """Return a function's source text, or its bytecode for a lambda (its line may hold others) or without source."""
    try:
        if getattr(call, "__name__", "") == "<lambda>":
            raise OSError
        return textwrap.dedent(inspect.getsource(call))
    except (OSError, TypeError):
        code = getattr(call, "__code__", None)
        return "\n".join(_code(code)) if code else f"{getattr(call, '__module__', '')}.{call!r:.200}"


def _code(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(constant)


def _values(value: Any) -> str:
    """Return the text of a value of plain types; for any other value, the name of its type."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!s}: {_values(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_values, value)) + "]"
    return type(value).__qualname__
