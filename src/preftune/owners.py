"""Which Python files may run: those that only you or root can have written. Everything else needs --allow-code.

A config can name a Python file, and the file is executed. So a config or a file that another user of the machine has
written, or can change, would run that user's code with your permissions. git checks the owner of a repository for the
same reason ("dubious ownership"). Windows has no owners in this sense, so nothing is checked there.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError

ALLOW = "--allow-code"
WHY = "a Python file runs only if it and the config that names it belong to you or root, and nobody else can write them"
_ALLOWED: ContextVar[bool] = ContextVar("preftune_allow_code", default=False)
_NAMED_BY: dict[str, Path] = {}  # the config file that was the last to name a function of a file, by "file.py:function"


@contextmanager
def allowing(code: bool) -> Iterator[None]:
    """Run one command: with `code`, no owner is checked. The config files of other commands do not count."""
    token = _ALLOWED.set(code)
    _NAMED_BY.clear()
    try:
        yield
    finally:
        _ALLOWED.reset(token)
        _NAMED_BY.clear()


def allowed() -> bool:
    """Return whether the command has the option --allow-code."""
    return _ALLOWED.get()


def remember(config: Path, value: Any) -> None:
    """Remember the functions of Python files that the values of a config file name."""
    if isinstance(value, str) and ".py:" in value:
        _NAMED_BY[value] = config.absolute()
    elif isinstance(value, Mapping):
        for entry in value.values():
            remember(config, entry)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for entry in value:
            remember(config, entry)


def read_code(path: Path, name: str, where: str) -> bytes:
    """Return the source of the Python file `path` for the function "file.py:function" called `name`.

    The source comes from the open file whose owner was checked, not from a compiled copy in __pycache__. Raises
    ConfigError if another user can have written the file or the config that names it, and OSError.
    """
    with path.open("rb") as file:
        _require_own(path, os.fstat(file.fileno()), f"{path} was not run: it", where)
        config = _NAMED_BY.get(name)
        if config is not None and config.exists():
            _require_own(config, config.stat(), f"{path} was not run: the config {config}, which names it,", where)
        return file.read()


def _require_own(path: Path, status: os.stat_result, subject: str, where: str) -> None:
    problem = problem_of(status)
    if not problem or allowed():
        return
    trust = f"pass {ALLOW} if you trust the file (in Python: pass the function itself)"
    is_own = status.st_uid == os.geteuid()
    repair = f"run chmod go-w {shlex.quote(str(path))}" if is_own else f"read {path} and copy it to a file of your own"
    raise ConfigError(f"{subject} {problem}", where=where, why=WHY, fix=f"{repair}, or {trust}")


def problem_of(status: os.stat_result) -> str:
    """Return who else can have written a file, or "" if nobody but you and root can. Always "" on Windows."""
    if os.name == "nt":
        return ""
    users, groups = {os.geteuid(), 0}, {os.getegid()}
    if os.geteuid() == 0:  # sudo keeps the user who calls it in the environment
        users |= _number("SUDO_UID")
        groups |= _number("SUDO_GID")
    if status.st_uid not in users:
        return f"belongs to {_user(status.st_uid)}"
    if status.st_mode & 0o002:
        return "can be changed by every user of this machine"
    if status.st_mode & 0o020 and status.st_gid not in groups:
        return f"can be changed by {_group(status.st_gid)}"
    return ""


def _number(variable: str) -> set[int]:
    text = os.environ.get(variable, "")
    return {int(text)} if text.isdecimal() else set()


def _user(number: int) -> str:
    with suppress(Exception):  # a number without an account
        import pwd

        return f"user {number} ({pwd.getpwuid(number).pw_name})"
    return f"user {number}"


def _group(number: int) -> str:
    with suppress(Exception):
        import grp

        return f"group {number} ({grp.getgrgid(number).gr_name})"
    return f"group {number}"
