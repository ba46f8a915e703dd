"""What the functions that measure have in common: checked keywords, messages with their names, a place for files."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args, get_type_hints

from preftune.errors import ConfigError, PreftuneError, did_you_mean
from preftune.resolve import bind, inputs_of, parameters_of

if TYPE_CHECKING:
    from preftune.train.display import Display

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check keywords by the function's annotations, and name them in errors that name options of the command line.

    The function then raises ConfigError for an unknown keyword, a wrong type or a value out of range. The keys of the
    section `data` that it takes as `**settings` are checked by that section.
    """
    keywords, data_keys = tuple(parameters_of(function)), _data_keys(function)
    positional = tuple(name for name in inputs_of(function) if name != "settings")
    where = f"preftune.{function.__name__}"

    @functools.wraps(function)
    def call(*arguments: Any, **given: Any) -> Any:
        if len(arguments) > len(positional):
            first = ", ".join(f"{name}=..." for name in keywords[: len(arguments) - len(positional)])
            raise ConfigError("too many arguments without a name", where=where, fix=f"name them: {first}")
        own = {name: given.pop(name) for name in positional if name in given}
        lacking = [name for name in positional[len(arguments) :] if name not in own]
        if lacking:
            raise ConfigError(f"{function.__name__!r} needs {', '.join(lacking)}", where=where)
        for key in given:
            if key not in (*keywords, *data_keys):
                what = f"{function.__name__!r} has no parameter {key!r}"
                raise ConfigError(
                    f"{what}; {did_you_mean(key, [*positional, *keywords, *data_keys])}", where=f"{where}.{key}"
                )
        of_data = {key: given.pop(key) for key in tuple(given) if key not in keywords}
        settings = bind(function, given, where, function.__name__)
        with errors_in_python((*keywords, *data_keys)):
            return function(*arguments, **own, **settings, **of_data)

    return call


def _data_keys(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names in the TypedDict of `**settings`; none if the function does not take it."""
    kind = get_type_hints(function).get("settings")
    return tuple(get_args(kind)[0].__annotations__) if kind else ()


@contextmanager
def errors_in_python(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, an error that names the option --max-length names the keyword max_length."""
    try:
        yield
    except PreftuneError as error:
        parts = {part: _keywords(getattr(error, part), names) for part in ("what", "where", "why")}
        parts["what"] = parts["what"].removeprefix("ModelConfig: ")  # made of dtype
        parts["where"] = re.sub(r"^preftune (?:eval )?(\w+)$", r"preftune.\1()", parts["where"])
        parts["fix"] = _keywords(error.fix, names, "=...")
        for part, text in parts.items():
            setattr(error, part, text)
        error.args = PreftuneError(**parts).args
        raise


def _keywords(text: str, names: tuple[str, ...], value: str = "") -> str:
    def name_of(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return name + value if name in names else match[0]

    return re.sub(r"(?<![\w-])--([a-z][a-z-]*[a-z]|k|n)\b", name_of, text)


@contextmanager
def place(out: Any, name: str, quiet: bool) -> Iterator[tuple[Path, Display]]:
    """Where a function writes, and its display: `out`, or a folder that is deleted afterwards and is not displayed."""
    from preftune.train.display import Display

    display = Display(quiet)
    if out is not None:
        yield Path(out), display
        return
    with tempfile.TemporaryDirectory(prefix="preftune-") as folder:
        path, say = Path(folder) / name, display.say

        def tell(text: str) -> None:
            text = text.replace(f"{path}: ", "")
            if not text.startswith(f"done: {path}"):
                say(text)

        display.say = tell  # type: ignore[method-assign]
        yield path, display
