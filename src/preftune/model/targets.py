"""Which modules of a model get an adapter: kinds of layers, module names, or a regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from preftune.errors import ModelError
from preftune.model.compile import blocks
from preftune.model.head import output_layer

ALL_LINEAR, ATTENTION, MLP = KINDS = ("all-linear", "attention", "mlp")
ROUTERS = ("gate", "router")  # they choose experts, and are not a part of the kind mlp


def expand_targets(model: Any, targets: str | list[str]) -> str | list[str]:
    """Return `targets` for peft, with the kinds attention and mlp replaced by module names.

    Raises ModelError if an entry does not match any module.
    """
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return ALL_LINEAR  # peft expands it
    if isinstance(targets, str) and targets.lower() not in KINDS:
        require_targets(model, targets)
        return targets
    names = [targets] if isinstance(targets, str) else targets
    others = [name for name in names if name.lower() not in KINDS]
    if others or not names:
        require_targets(model, others)
    expanded = [each for name in names for each in ([name] if name in others else _names_of(model, name.lower()))]
    return list(dict.fromkeys(expanded))


def _names_of(model: Any, kind: str) -> list[str]:
    """Return the names by which peft matches the linear layers of a kind and no others, as short as possible."""
    layers = linear_layers(model, kind)
    if not layers:
        raise ModelError(
            f"the model has no linear layers of the kind {kind}",
            where="lora.targets",
            why="the linear layers in its blocks are all of the other kind, or its experts are stacked tensors",
            fix=f"choose from the model's linear modules: {linear_modules(model)}",
        )
    every = [name for name, _ in model.named_modules()]
    short: dict[str, None] = {}
    for name in layers:
        parts = name.split(".")
        suffixes = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        unique = (s for s in suffixes if all(n in layers for n in every if n == s or n.endswith(f".{s}")))
        short[next(unique)] = None
    return list(short)


def linear_layers(model: Any, kind: str) -> dict[str, nn.Module]:
    """Return the linear layers of a kind by name. all-linear: those of the whole model, except its output layer."""
    from transformers.pytorch_utils import Conv1D

    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    if kind == ALL_LINEAR:
        head = output_layer(model)
        return {name: module for name, module in linear.items() if module is not head}
    try:
        inside = {id(module): name for block in blocks(model) for name, module in block.named_modules()}
    except ModelError as error:
        what = f"{kind} needs a model with a list of blocks, and {type(model).__name__} has none"
        raise ModelError(what, where="lora.targets", fix="list module names, or use all-linear") from error
    paths = {name: inside[id(module)] for name, module in linear.items() if id(module) in inside}
    is_attention = {name: bool(re.search("attn|attention", path.lower())) for name, path in paths.items()}
    return {
        name: linear[name]
        for name, path in paths.items()
        if is_attention[name] == (kind == ATTENTION) and path.rpartition(".")[2] not in ROUTERS
    }


def require_targets(model: Any, targets: str | list[str]) -> None:
    """Raise ModelError if a module name, or a regular expression (a string), does not match any module."""
    names = [targets] if isinstance(targets, str) else targets
    unmatched = [target for target in names if not matches_module(model, target, targets)]
    if not unmatched and names:
        return
    quoted = [f"{name!r}{_suggestion(model, name, targets)}" for name in unmatched]
    raise ModelError(
        f"no module of the model matches {', '.join(quoted)}" if unmatched else "the list is empty",
        where="lora.targets",
        why=f"a list holds module names and kinds ({', '.join(KINDS)}). Any other text is a regular expression that "
        "matches whole names",
        fix=f"choose from the model's linear modules: {linear_modules(model)}",
    )


def require_modules(model: Any, names: Sequence[str]) -> None:
    """Raise ModelError if an entry of lora.modules_to_save does not match any module with weights."""
    for name in names:
        modules = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
        if not modules:
            what = f"no module of the model matches {name!r}{_suggestion(model, name, [name])}"
            raise ModelError(what, where="lora.modules_to_save", fix="list names such as embed_tokens, lm_head or norm")
        if not any(True for _ in modules[0].parameters()):
            what = f"the module {name!r} has no weights"
            raise ModelError(what, where="lora.modules_to_save", fix="remove it from the list")


def _suggestion(model: Any, name: str, targets: str | list[str]) -> str:
    """Return a suggestion in brackets for a name that matches no module, or "" if no module name is similar."""
    candidates = sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path} | set(KINDS))
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if not close:
        return ""
    if close[0] in KINDS:
        return f" (did you mean targets: {close[0]}?)"
    return f" (did you mean targets: [{close[0]}]?)" if isinstance(targets, str) else f" (did you mean {close[0]!r}?)"


def matches_module(model: Any, target: str, targets: str | list[str]) -> bool:
    """Return whether `target` matches a module, by peft's rules for lists of names and for regular expressions."""
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, list):
        return target.lower() in KINDS or any(name == target or name.endswith(f".{target}") for name in names)
    try:
        pattern = re.compile(target)
    except re.error as error:
        what, fix = f"{target!r} is not a valid regular expression: {error}", "list names: lora.targets=[q_proj,v_proj]"
        raise ModelError(what, where="lora.targets", fix=fix) from error
    return any(pattern.fullmatch(name) for name in names)


def linear_modules(model: Any) -> str:
    """Return the last parts of the names of all linear layers, for a message."""
    return ", ".join(sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}))
