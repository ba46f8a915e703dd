"""The losses and their parameters, read from the source of preftune/losses without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

MODULES = ("pairwise", "reference_free", "tokenwise", "unpaired", "listwise")  # with a TABLE of losses each


@dataclass(frozen=True, slots=True)
class LossSignature:
    """What a loss is, in one line, and the default values of its parameters."""

    summary: str
    parameters: Mapping[str, float | bool]


@cache
def loss_signatures() -> Mapping[str, LossSignature]:
    """Return the losses that `loss.name` accepts, in the order of the documentation."""
    folder = files("preftune") / "losses"
    losses: dict[str, LossSignature] = {}
    for module in MODULES:
        losses.update(_in_module((folder / f"{module}.py").read_text(encoding="utf-8")))
    return MappingProxyType(losses)


def _in_module(source: str) -> Iterator[tuple[str, LossSignature]]:
    """Yield the functions in the TABLE of a module."""
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == "TABLE" for target in targets):
            continue
        names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in functions]
        for name in dict.fromkeys(names):
            yield name, _signature(functions[name])


def _signature(function: ast.FunctionDef) -> LossSignature:
    summary = (ast.get_docstring(function) or "").partition("\n")[0]
    arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    defaults = {argument.arg: ast.literal_eval(default) for argument, default in arguments if default is not None}
    return LossSignature(summary, MappingProxyType(defaults))
