"""Exceptions that are reported to the user without a traceback. Each class has its own exit code.

    PreftuneError              1  internal error
      ConfigError              2  usage or config
      DataError                3  data
      ModelError               4  model or tokenizer
      RunError                 5  checkpoint or run folder
      NumericError             6  training stopped: a number is not finite, or a numerical check failed
      StorageError             7  storage or permission
      RanksError               8  another process of the run failed or is unreachable
      IncompleteError          9  samples, verdicts or another program are missing; completed results are saved
      Stopped                 75  stopped on request; rerun the same command to resume

A message says where, what happened, why it matters and what to do: `where: what`, then indented lines with `why` and
`fix: ...` (for Stopped, `next: ...`).
"""

from __future__ import annotations

import difflib
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PreftuneError(Exception):
    """Base class of all errors that are reported to the user without a traceback."""

    exit_code = 1
    label = "fix"
    result: Mapping[str, Any] = {}  # what the command knows in spite of the error, for --json

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, for_shell(fix)
        lines = [f"{where}: {what}" if where else what, why and f"  {why}", fix and f"  {self.label}: {self.fix}"]
        super().__init__(printable("\n".join(filter(None, lines))))


class ConfigError(PreftuneError, ValueError):
    """An invalid config file, override or command line."""

    exit_code = 2


class DataError(PreftuneError, ValueError):
    """A data file that cannot be read, or rows that cannot be trained on."""

    exit_code = 3


class ModelError(PreftuneError, ValueError):
    """A model folder, tokenizer or chat template that cannot be used."""

    exit_code = 4


class RunError(PreftuneError, RuntimeError):
    """A run folder or checkpoint that does not fit the command."""

    exit_code = 5


class NumericError(PreftuneError, ArithmeticError):
    """A loss or gradient that is not finite, or a failed numerical check. The weights are as before the step."""

    exit_code = 6


class StorageError(PreftuneError, OSError):
    """A file that cannot be written."""

    exit_code = 7


class RanksError(PreftuneError, RuntimeError):
    """Another process of a run on several ranks failed, was killed, or does not respond."""

    exit_code = 8


class IncompleteError(PreftuneError, RuntimeError):
    """Some requests to a server failed, or a program is missing. Completed results are saved; rerun for the rest."""

    exit_code = 9


class Stopped(PreftuneError, RuntimeError):
    """The user stopped the run. Completed steps are saved; rerun the same command to resume."""

    exit_code = 75
    label = "next"


def printable(text: str) -> str:
    """Replace control characters by escapes such as \\x1b: text of others must not control the terminal."""
    return "".join(c if c in "\n\t" or c >= "\xa0" or " " <= c <= "~" else repr(c)[1:-1] for c in text)


@contextmanager
def writing(where: str | Path, fix: str = "") -> Iterator[None]:
    """Convert errors of the operating system inside this context to a StorageError that names the path `where`."""
    try:
        yield
    except Exception as error:
        # safetensors reports system errors with its own exception class, and tokenizers with Exception
        is_of_system = isinstance(error, OSError) or "Safetensor" in type(error).__name__
        if isinstance(error, StorageError) or not (is_of_system or "(os error " in str(error)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"the path cannot be written: {reason}", where=str(where), fix=fix) from error


def require_writable(where: str | Path) -> None:
    """Raise StorageError if the path `where` cannot be written. Creates no file; for a check before a long run."""
    path = Path(where).absolute()
    parent = next(p for p in (path, *path.parents) if p.exists())
    if parent == path and not path.is_dir():
        parent = path.parent
    with writing(where, fix="choose a different path"):
        tempfile.TemporaryFile(dir=parent).close()


def did_you_mean(name: str, valid_names: Iterable[str]) -> str:
    """Suggest the closest of `valid_names` for a misspelt `name`; without a close match, list all of them."""
    names = sorted(valid_names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(names) or 'none'}"


# KEY={...} or KEY=[...]: braces and brackets have a meaning in shells. They may hold one more level of braces or
# brackets. The first and the last part exclude text that is quoted already.
INSIDE = r"(?:[^{}\[\]]|\{[^{}]*\}|\[[^\[\]]*\])*"
SETTING_WITH_BRACES = re.compile(rf"""(?<!['"\w.])([\w.-]+=(?:\{{{INSIDE}\}}|\[{INSIDE}\]))(?!['"])""")


def for_shell(text: str) -> str:
    """Put quotes around the settings in `text` that have braces or brackets, so that they can be pasted in a shell."""
    return SETTING_WITH_BRACES.sub(lambda match: shlex.quote(match[1]), text)


def one_of(values: Sequence[str]) -> str:
    """Return "a, b or c"."""
    return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def plain_problem(error: Mapping[str, Any]) -> str:
    """Return what pydantic expects in `error`, an entry of `ValidationError.errors()`, in plain words."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind == "literal_error":
        names = re.findall("'([^']*)'", context["expected"])
        return f"must be {one_of(names)}"
    if kind in EXPECTED:
        return f"must be {EXPECTED[kind]}"
    if kind in LIMITS:
        word, name = LIMITS[kind]
        return f"must be {word} {context[name]:g}"
    message = str(error["msg"])
    return message.removeprefix("Value error, ") if kind == "value_error" else f"not valid: {message}"


EXPECTED = {
    "bool_type": "true or false", "bool_parsing": "true or false", "float_type": "a number", "string_type": "text",
    "float_parsing": "a number", "finite_number": "a finite number", "int_type": "a whole number",
    "int_parsing": "a whole number", "int_from_float": "a whole number", "int_parsing_size": "a smaller number",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping, e.g. {a: b}", "none_required": "null",
}  # fmt: skip
LIMITS = {
    "greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"), "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}  # fmt: skip
