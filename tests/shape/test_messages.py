"""Error messages say what to do: every error for the user is created with a `fix`, or suggests a name in its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "preftune"
ERRORS = {"ConfigError", "DataError", "ModelError", "RunError", "NumericError", "StorageError", "IncompleteError"}
#: Functions whose result is a suggestion ("did you mean ...?", "write loss.name=ipo") at the end of a message.
SUGGESTIONS = {"did_you_mean", "suggest", "_not_a_setting"}
#: (file, function) that creates an error without a `fix`, or without a `where`.
EXCEPTIONS = {
    # Each line of the message is a problem with its place and its suggestion.
    ("config/load.py", "config_error"),
}


def name_of(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def created(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.Call, set[str]]]:
    """Yield each call that creates an error, with its function and the functions whose results are in its message."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node) in ERRORS:
                names = {arg.id for arg in node.args for arg in ast.walk(arg) if isinstance(arg, ast.Name)}
                parts = [*node.args, *values_of(function, names)]
                called = {name_of(inner) for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Call)}
                yield function, node, called


def values_of(function: ast.FunctionDef, names: set[str]) -> Iterator[ast.expr]:
    """Yield the values that `function` assigns to one of `names`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in names for t in node.targets):
            yield node.value


def test_every_error_says_where_and_what_to_do() -> None:
    used = set()
    for path in sorted(SRC.rglob("*.py")):
        for function, call, called in created(ast.parse(path.read_text())):
            keywords = {keyword.arg for keyword in call.keywords}
            if "where" in keywords and ("fix" in keywords or called & SUGGESTIONS):
                continue
            place = (path.relative_to(SRC).as_posix(), function.name)
            assert place in EXCEPTIONS, f"{path}:{call.lineno}: add where= and fix= to this error"
            used.add(place)
    assert used == EXCEPTIONS, "remove the exceptions that are not needed"


def test_a_fix_is_an_instruction_without_a_capital_or_a_full_stop() -> None:
    for path in sorted(SRC.rglob("*.py")):
        for function, call, _ in created(ast.parse(path.read_text())):
            fixes = [keyword.value for keyword in call.keywords if keyword.arg == "fix"]
            fixes += values_of(function, {fix.id for fix in fixes if isinstance(fix, ast.Name)})
            for text in (str(fix.value) for fix in fixes if isinstance(fix, ast.Constant)):
                assert not text[:1].isupper(), f"{path}:{call.lineno}: {text}"
                assert text.endswith("...") or not text.endswith("."), f"{path}:{call.lineno}: {text}"
