"""Helpers for the measuring functions: checked keywords, errors that name keywords, and output files."""

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
    """Decorate a function so that it checks its keywords against its annotations.

    It then raises ConfigError for an unknown keyword, a wrong type or a value out of range, and errors name keywords
    instead of options of the command line. The section `data` checks the keys in `**settings`.
    """
    kind = get_type_hints(function).get("settings")  # the TypedDict of `**settings`
    data_keys = tuple(get_args(kind)[0].__annotations__) if kind else ()
    keywords = tuple(parameters_of(function))
    positional = tuple(name for name in inputs_of(function) if name != "settings")
    where = f"preftune.{function.__name__}"

    @functools.wraps(function)
    def call(*arguments: Any, **values: Any) -> Any:
        if len(arguments) > len(positional):
            first = ", ".join(f"{name}=..." for name in keywords[: len(arguments) - len(positional)])
            raise ConfigError("too many positional arguments", where=where, fix=f"pass them by name: {first}")
        named = {name: values.pop(name) for name in positional if name in values}
        missing = [name for name in positional[len(arguments) :] if name not in named]
        if missing:
            fix = f"pass {', '.join(f'{name}=...' for name in missing)}"
            raise ConfigError(f"{function.__name__!r} needs {', '.join(missing)}", where=where, fix=fix)
        for key in values:
            if key not in (*keywords, *data_keys):
                what = f"{function.__name__!r} has no parameter {key!r}"
                raise ConfigError(
                    f"{what}; {did_you_mean(key, [*positional, *keywords, *data_keys])}", where=f"{where}.{key}"
                )
        data_settings = {key: values.pop(key) for key in tuple(values) if key not in keywords}
        settings = bind(function, values, where, function.__name__)
        with name_keywords_in_errors((*keywords, *data_keys)):
            return function(*arguments, **named, **settings, **data_settings)

    return call


@contextmanager
def name_keywords_in_errors(names: tuple[str, ...]) -> Iterator[None]:
    """Replace options in the errors of the block by keywords: --max-length becomes max_length."""
    try:
        yield
    except PreftuneError as error:
        parts = {part: _keywords(getattr(error, part), names) for part in ("what", "where", "why")}
        parts["what"] = parts["what"].removeprefix("ModelConfig: ")  # raised for dtype
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
def output(out: Any, name: str, quiet: bool) -> Iterator[tuple[Path, Display]]:
    """Yield the output path and the display. Without `out`, the path is temporary and messages omit it."""
    from preftune.train.display import Display

    display = Display(quiet)
    if out is not None:
        yield Path(out), display
        return
    with tempfile.TemporaryDirectory(prefix="preftune-") as folder:
        path, say = Path(folder) / name, display.say

        def say_without_path(text: str) -> None:
            text = text.replace(f"{path}: ", "")
            if str(path) in text and not text.startswith(f"done: {path}"):
                text = text.partition(" Next: ")[0]  # a command with a path that will not exist
            if not text.startswith(f"done: {path}"):
                say(text)

        display.say = say_without_path  # type: ignore[method-assign]
        yield path, display
