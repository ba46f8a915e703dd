"""Rows, functions and models that a caller passes in memory, under names that a config can hold.

A config names its data, losses, rewards and formats by text. While `holding` is open, a name stands for an object;
sources/read.py looks up rows here, resolve.py functions, and lifecycle/saved.py models.

    memory:data-1f2e3a4b5c6d7e8f        rows, by a hash of their content
    memory:policy-1f2e3a4b5c6d7e8f      a model, by a hash of its weights; it lies in a temporary folder
    python:my_module.my_loss-1f2e3a4b   a function, by a hash of its source
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
DEPTH = 4  # functions inside functions that enter a hash


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows given in memory. Row i has the origin `label[i]`; `digest` is a hash of all rows."""

    label: str
    rows: tuple[Any, ...]
    digest: str

    @property
    def name(self) -> str:
        return f"{MEMORY}{self.label}-{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Function:
    """A function given in memory; `digest` is a hash of its source."""

    call: Callable[..., Any]
    digest: str

    @property
    def name(self) -> str:
        """Module and name, without the hash."""
        base = self.call
        module = getattr(base, "__module__", None) or "?"
        name = getattr(base, "__qualname__", type(base).__qualname__)
        return f"{FUNCTION}{module}.{name}"

    @property
    def exact(self) -> str:
        """The name with the hash: another one when the source changes."""
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model given in memory, as the folder that it was written to."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{MEMORY}{self.folder.name}"


Object = Rows | Function | StoredModel
_HELD: ContextVar[Mapping[str, Object]] = ContextVar("preftune_objects", default={})  # noqa: B039 - never changed


@contextmanager
def holding(objects: Mapping[str, Object]) -> Iterator[None]:
    """Inside, the names stand for these objects, in this thread."""
    token = _HELD.set({**_HELD.get(), **objects})
    try:
        yield
    finally:
        _HELD.reset(token)


def rows(name: str) -> Rows | None:
    """The rows of this name, None for a name of anything else.

    Raises DataError for rows that were given in memory to an earlier call.
    """
    if not name.startswith(MEMORY):
        return None
    found = _HELD.get().get(name)
    if not isinstance(found, Rows):
        raise DataError(
            "these data were given in memory",
            where=name,
            why="a config holds a hash of such rows, not the rows",
            fix="call preftune from Python with the same rows, or write them to a file and set data.train=FILE",
        )
    return found


def function(name: str, where: str) -> Callable[..., Any] | None:
    """The function of this name, None for a name of anything else.

    Raises ConfigError for a function that was given in memory to an earlier call.
    """
    if not name.startswith(FUNCTION):
        return None
    found = _HELD.get().get(name)
    if not isinstance(found, Function):
        raise ConfigError(
            f"{name!r} was given as a Python function",
            where=where,
            why="a config holds its name and a hash of its source, not the function",
            fix='call preftune from Python with the function, or put it into a file and name it as "file.py:function"',
        )
    return found.call


def digest_of(name: str) -> str:
    """A hash of the rows or the function that a name stands for; empty for other names."""
    found = _HELD.get().get(name)
    return found.digest if isinstance(found, Rows | Function) else ""


def model_path(name: str) -> str:
    """The folder of a model given in memory; another name as it is."""
    found = _HELD.get().get(name)
    return str(found.folder) if isinstance(found, StoredModel) else name


def as_rows(values: Iterable[Any], label: str) -> Rows:
    """Rows as a JSONL file would give them. Tuples and arrays become lists, numpy's numbers become Python's."""
    found = tuple(plain(value) for value in values)
    digest = hashlib.sha256()
    for value in found:
        digest.update(json.dumps(value, sort_keys=True, default=_in_words).encode() + b"\n")
    return Rows(label, found, digest.hexdigest())


def plain(value: Any) -> Any:
    """`value` in the types of JSON. An object that has none of them, such as an image, stays as it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if type(value) in (bool, int, float, str, type(None)) else _base(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(getattr(value, "tolist", None)):  # arrays and scalars of numpy, tensors
        return plain(value.tolist())
    return value


def _base(value: Any) -> Any:
    """An instance of a subclass of a JSON type, such as numpy.float64, as that type."""
    return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))


def _in_words(value: Any) -> str:
    """An object of no JSON type, for the hash: without the address in memory, which is another one next time."""
    if callable(getattr(value, "tobytes", None)):
        return f"{type(value).__qualname__} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return f"{type(value).__qualname__} {_without_address(repr(value))}"


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def as_function(call: Callable[..., Any]) -> Function:
    """A function with the hash of its source, its defaults and the plain values that it was made with."""
    digest = hashlib.sha256("\n".join(_parts(call, DEPTH)).encode("utf-8", "replace")).hexdigest()
    return Function(call if isinstance(call, FunctionType | MethodType) else _as_plain_function(call), digest)


def _as_plain_function(call: Callable[..., Any]) -> Callable[..., Any]:
    """A partial, a class or an object with __call__, with the signature and the annotations of what it calls."""
    core = call
    while isinstance(core, functools.partial):
        core = core.func
    inner: Any = core
    if not isinstance(core, FunctionType | MethodType):
        inner = core.__init__ if isinstance(core, type) else type(core).__call__  # type: ignore[misc]

    @functools.wraps(inner)
    def called(*arguments: Any, **keywords: Any) -> Any:
        return call(*arguments, **keywords)

    named = core if hasattr(core, "__qualname__") else type(core)  # the name that the user knows it by
    called.__module__, called.__qualname__ = str(named.__module__), named.__qualname__
    called.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return called


def _parts(call: Any, depth: int) -> Iterator[str]:
    """What a function does, for its hash: source text, defaults and captured values, where they can be read."""
    if isinstance(call, functools.partial):
        yield f"partial {_values([call.args, call.keywords])}"
        yield from _parts(call.func, depth)
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
        except ValueError:  # not bound yet
            continue
        yield f"{name} = {_values(value)}"
        if isinstance(value, FunctionType) and depth:
            yield from _parts(value, depth - 1)


def _source(call: Any) -> str:
    """The source text of a function. Its bytecode if there is no text, or for a lambda, whose line may hold others."""
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
    """A value of plain types in words; of anything else, its type."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!s}: {_values(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_values, value)) + "]"
    return type(value).__qualname__
