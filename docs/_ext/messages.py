"""Every message of a class of errors, read from the source code of preftune.

The code creates an error with constant texts, `DataError("what", why="why", fix="fix")`. Parts that are computed are
shown as `...`, so that a reader finds the message by its fixed words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "preftune"
HIDDEN = "..."
ALSO = {"ConfigError": ("ValueError", "config")}
"""Checks of config values raise a ValueError in this folder, which becomes an error of the class."""


@dataclass(frozen=True, slots=True)
class Message:
    """The parts of an error message that are fixed in the code, with all that `why` and `fix` can be."""

    what: str
    why: tuple[str, ...]
    fix: tuple[str, ...]


Values = Mapping[str, Sequence[ast.expr]]
"""The expressions that are assigned to each name, and those that a function returns, under `name()`."""


def texts(node: ast.expr, values: Values) -> list[str]:
    """Return the texts that an expression can have, with `...` for what is computed."""
    match node:
        case ast.Name():
            result = [text for value in values.get(node.id, ()) for text in texts(value, {})]
        case ast.Call():
            result = [text for value in values.get(f"{callee(node)}()", ()) for text in texts(value, {})]
        case ast.Constant(value=str(text)):
            result = [text]
        case ast.JoinedStr():
            parts = [texts(part, values) for part in node.values]
            result = ["".join(choice) for choice in product(*parts)]
        case ast.FormattedValue(value=ast.Name(id=name)):  # a part of the message that was put together before
            whole = [text for value in values.get(name, ()) for text in texts(value, {})]
            result = list(dict.fromkeys(text if re.search("[a-z]{2} ", text) else HIDDEN for text in whole))
        case ast.IfExp():
            result = [*texts(node.body, values), *texts(node.orelse, values)]
        case ast.BoolOp():
            result = [text for value in node.values for text in texts(value, values)]
        case ast.BinOp(op=ast.Add()):
            result = [left + right for left in texts(node.left, values) for right in texts(node.right, values)]
        case _:
            result = []
    return result or [HIDDEN]


def messages(name: str, source: Path = SOURCE) -> list[Message]:
    """Return the messages of the class `name`, sorted by their words. Equal texts at several places are one message."""
    merged: dict[str, Message] = {}
    for path in sorted(source.rglob("*.py")):
        other, folder = ALSO.get(name, ("", ""))
        names = (name, other) if folder in path.relative_to(source).parts[:-1] else (name,)
        for new in of_file(path, names):
            old = merged.get(new.what, Message(new.what, (), ()))
            why, fix = (tuple(dict.fromkeys(parts)) for parts in (old.why + new.why, old.fix + new.fix))
            merged[new.what] = Message(new.what, why, fix)
    return sorted(merged.values(), key=lambda message: re.sub(r"\W+", " ", message.what).strip().lower())


def of_file(path: Path, names: Collection[str]) -> Iterator[Message]:
    tree = ast.parse(path.read_text())
    constants = {**returned(tree.body), **assigned(tree.body)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        values = {**constants, **assigned(list(ast.walk(function)))}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and callee(node) in names:
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                why, fix = (tuple(shown(named.get(part), values)) for part in ("why", "fix"))
                for what in shown(node.args[0] if node.args else None, values):
                    yield Message(what, why, fix)


def callee(call: ast.Call) -> str:
    """Return the name of the function or class that is called, without its module."""
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def returned(statements: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """Return the expressions that each function returns, under the name `function()`."""
    functions = (node for node in statements if isinstance(node, ast.FunctionDef))
    return {
        f"{function.name}()": [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
        for function in functions
    }


def assigned(statements: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    values: dict[str, list[ast.expr]] = {}
    for node in statements:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for one, value in zip(target.elts, node.value.elts, strict=False):
                        if isinstance(one, ast.Name):
                            values.setdefault(one.id, []).append(value)
    return values


def shown(node: ast.expr | None, values: Values) -> list[str]:
    """Return the texts of one part that say something: those with a word."""
    if node is None:
        return []
    clean = (re.sub(r"(\.\.\.[\s.:,]*){2,}", HIDDEN + " ", " ".join(text.split())) for text in texts(node, values))
    return [text.strip() for text in dict.fromkeys(clean) if re.search(r"[a-z]{3}", text)]
