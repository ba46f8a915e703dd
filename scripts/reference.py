"""Pages of docs/lookup/ that list the commands with their options, and the names of `import preftune`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from tables import lines

import preftune
from preftune.cli.main import app

COMMANDS = """\
# Commands

Every command with its arguments and options, as `--help` prints them. Commands that take `SECTION.KEY=VALUE` accept
the keys of the [configuration](configuration.md). [The command line](command-line.md)
describes what all commands share: configs that fit, completion, `--json`.
"""

API = """\
# Python API

Every name of `import preftune`, with its signature. [Python](../do/python.md) shows how to use them. The keyword
arguments of the training functions are the sections and keys of the [configuration](configuration.md).
"""

KINDS = (
    ("Functions", inspect.isfunction),
    ("Data", lambda value: isinstance(value, type) and value.__module__ == "preftune.types"),
    ("Results", lambda value: isinstance(value, type) and value.__module__ == "preftune.api.results"),
    ("Configs", lambda value: isinstance(value, type) and value.__module__.startswith("preftune.config")),
    ("Errors", lambda value: isinstance(value, type) and issubclass(value, Exception)),
)


def commands() -> str:
    """Every command that is not hidden, in the order of `preftune --help`."""
    out = [COMMANDS, lines(("command", "what it does"), [[f"[`{n}`](#{slug(n)})", first(c)] for n, c in walk()])]
    for name, command in walk():
        out += [f"\n## `{name}`\n", f"```text\n{usage(name, command)}\n```\n", text_of(command)]
        rows = [[described(parameter), default_of(parameter), cell(help_of(parameter))] for parameter in shown(command)]
        out += ["", lines(("option", "default", "meaning"), rows)] if rows else []
    return "\n".join(out) + "\n"


def walk(command: Any = None, name: str = "preftune") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    for key, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from walk(inner, f"{name} {key}") if hasattr(inner, "commands") else [(f"{name} {key}", inner)]


def slug(name: str) -> str:
    return name.replace(" ", "-")


def text_of(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\b", "").strip()


def first(command: Any) -> str:
    return str(command.get_short_help_str(limit=200))


def usage(name: str, command: Any) -> str:
    words = [name]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = parameter.metavar or parameter.name.upper()
            words.append(text if parameter.nargs == 1 or text.endswith("...") else f"{text}...")
    return " ".join([*words, "[OPTIONS]"])


def shown(command: Any) -> list[Any]:
    return [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]


def described(parameter: Any) -> str:
    """Return the names of an option, or what an argument is. Types have other names in other versions of typer."""
    if parameter.param_type_name == "argument":
        return f"`{cell(parameter.metavar or parameter.name.upper())}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    marks = [mark for mark, is_so in (("repeatable", parameter.multiple), ("required", parameter.required)) if is_so]
    return f"{names} ({', '.join(marks)})" if marks else names


def default_of(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or "Sentinel" in str(type(value)) or parameter.required:
        return ""
    return f"`{value}`"


def help_of(parameter: Any) -> str:
    return getattr(parameter, "help", None) or ""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def api() -> str:
    """Every public name by kind, with its signature and docstring."""
    out = [API]
    for title, belongs in KINDS:
        names = [name for name in preftune.__all__ if belongs(getattr(preftune, name))]
        out.append(f"\n## {title}\n")
        for name in sorted(names):
            value = getattr(preftune, name)
            out.append(f"### `{name}`\n\n```text\n{signature(name, value)}{inspect.getdoc(value) or ''}\n```\n")
    return "\n".join(out)


def signature(name: str, value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Exception):
        return ""
    if isinstance(value, type) and value.__module__.startswith("preftune.config"):
        return f"preftune.{name}(**sections)\n\n"
    parameters = [re.sub(r": '([^']*)'", r": \1", str(p)) for p in inspect.signature(value).parameters.values()]
    one = f"preftune.{name}({', '.join(parameters)})"
    return (
        one if len(one) <= 100 else f"preftune.{name}(\n" + "".join(f"    {p},\n" for p in parameters) + ")"
    ) + "\n\n"
