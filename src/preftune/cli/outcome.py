"""How a command ends: its exit code, the message of an error, and with --json one JSON object on stdout."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from preftune import stop
from preftune.errors import ConfigError, PreftuneError, Stopped, StorageError

JSON = "--json"
LONGEST_NAME = 200  # characters of a path in a message


class Command(TyperCommand):
    """A command with the option --json, which `preftune.cli.main.run` reads from the whole command line."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(_json_option())


@cache
def _json_option() -> Any:
    """Return the option --json. typer builds it from a function, because its own class differs between versions."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def any_command(
        json: Annotated[
            bool,
            typer.Option(
                JSON,
                expose_value=False,
                help="Print the result, or the error, as one JSON object on stdout. Everything else goes to stderr.",
            ),
        ] = False,
    ) -> None: ...

    return next(option for option in typer.main.get_command(app).params if JSON in option.opts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code, the result, and the error as kind, where, what, why and fix; empty without an error."""

    code: int = 0
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] = field(default_factory=dict)

    def document(self, command: str) -> str:
        """Return the JSON object: ok, code and command, then the result, then the error."""
        head = {"ok": not self.code, "code": self.code, "command": command}
        tail = {"error": self.error} if self.error else {}
        return json.dumps(plain({**head, **self.result, **tail}), indent=1)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: paths as text, records as objects, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int) or value is None:
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


def command_in(arguments: Sequence[str], app: Any) -> str:
    """Return the command that the arguments name, such as "eval winrate"."""
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            continue
        if argument not in getattr(command, "commands", {}):
            break
        command = command.commands[argument]
        names.append(argument)
    return " ".join(names)


def usage_error(error: Any, hint: str, command: str) -> Outcome:
    """Print an error in the arguments, and return the outcome."""
    error.show()
    if hint:
        print(f"  fix: {hint}", file=sys.stderr)
    where = f"preftune {command}".strip()
    return Outcome(2, error=_record("UsageError", where, error.format_message(), "", hint or f"run {where} --help"))


def failure(error: BaseException, debug: bool) -> Outcome:
    """Print why a command failed, and return the outcome."""
    if isinstance(error, PreftuneError):
        if not isinstance(error, Stopped) or stop.tells():
            print(error, file=sys.stderr)
        record = _record(type(error).__name__, error.where, error.what, error.why, error.fix)
        outcome = Outcome(error.exit_code, error.result, record)
    else:
        outcome = _unexpected(error)
    if debug:
        traceback.print_exception(error)
    return outcome


def interruption() -> Outcome:
    """Print that the command stopped on request, and return the outcome."""
    if stop.tells():
        print(stop.RERUN, file=sys.stderr)
    return Outcome(Stopped.exit_code, error=_record("Stopped", "", "stopped", "", "rerun the same command to resume"))


def _unexpected(error: BaseException) -> Outcome:
    """Print an exception that preftune does not expect, and return the outcome."""
    from preftune.resolve import in_words, place_of

    place = place_of(error)  # a line in the user's own file, for example in the backward pass of a loss
    if place:
        return failure(ConfigError(in_words(error), where=place, fix="correct this file"), debug=False)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:  # of the system, not a bug
        name = error.filename if isinstance(error.filename, str) else repr(error.filename)
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        fix = "use a different path, or make this one readable and writable"
        return failure(StorageError(f"the path cannot be used: {error.strerror}", where=shown, fix=fix), debug=False)
    what = f"internal error: {in_words(error)}"
    fix = "this is a bug in preftune; please report it with the output of --debug"
    print(f"{what}\n  fix: {fix}", file=sys.stderr)
    return Outcome(1, error=_record(type(error).__name__, "", what, "", fix))


def _record(kind: str, where: str, what: str, why: str, fix: str) -> dict[str, str]:
    return {"kind": kind, "where": where, "what": what, "why": why, "fix": fix}


def run_result(out: str, final: Path, dry_run: bool) -> dict[str, Any]:
    """Return the result of a training command: its files, and the last metrics of each split."""
    from preftune.train.metrics_file import read_lines

    folder = Path(out)
    if dry_run:
        return {"dry_run": True, "out": folder}
    last = {line["split"]: line for line in read_lines(folder)}
    return {
        "out": folder,
        "model": final,
        "report": folder / "report.html",
        "steps": max((line["step"] for line in last.values()), default=0),
        "metrics": last,
    }
