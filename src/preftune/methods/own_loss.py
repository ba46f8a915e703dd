"""Checks of a loss that the user wrote: what it returns is refused where training on it would go wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.losses.objective import Items
from preftune.types import Logps, LossOutput

UNIT = {"pairs": "preference pair", "responses": "response", "groups": "group", "tokens": "token"}


def checked(function: Callable[..., Any], name: str, items: Items) -> Callable[..., Tensor]:
    """`function`, the user's loss `name`, which raises ConfigError for a result that is not one value per item.

    A result without a gradient is an error where its inputs have one. So is one that is nan or infinite at the first
    call, where its inputs are finite.
    """

    seen = False

    @wraps(function)
    def loss(**inputs: Any) -> Tensor:
        nonlocal seen
        values = function(**inputs)
        if not isinstance(values, Tensor):
            hint = "; the sum and the count are taken from it" if isinstance(values, LossOutput | tuple) else ""
            raise _refusal(name, f"it returned {_kind(values)}, not a tensor{hint}", items)
        if not values.is_floating_point():
            raise _refusal(name, f"it returned {values.dtype}, not floating-point numbers", items)
        wanted = _numbers(inputs, items)
        if values.dim() != 1 or (wanted and len(values) not in wanted):
            number = f" for {wanted[0]} {UNIT[items]}{'s' * (wanted[0] != 1)}" if wanted else ""
            hint = " (already a mean or a sum?)" if values.dim() == 0 else ""
            raise _refusal(name, f"it returned the shape {tuple(values.shape)}{number}{hint}", items)
        if not seen and torch.is_grad_enabled():
            _require_gradient(values, inputs, name)
            _require_finite(values, inputs, name, items)
            seen = True
        return values

    return loss


def _require_gradient(values: Tensor, inputs: dict[str, Any], name: str) -> None:
    """Raises ConfigError if `values` do not depend on any input that has a gradient."""
    trained = [tensor for value in inputs.values() for tensor in _tensors(value) if tensor.requires_grad]
    if not trained:
        return
    if values.requires_grad:
        found = torch.autograd.grad(values.sum(), trained, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in found):
            return
    raise ConfigError(
        "its result has no gradient, so it would train nothing",
        where=name,
        why="It does not depend on the policy, or detach(), item(), numpy() or no_grad() cut the dependence.",
        fix="compute the loss from `policy` (or another input of the policy) with torch operations",
    )


def _require_finite(values: Tensor, inputs: dict[str, Any], name: str, items: Items) -> None:
    """Raises ConfigError if values are nan or infinite, although the numbers that they are made of are not."""
    bad = ~torch.isfinite(values)
    tensors = [tensor for value in inputs.values() for tensor in _tensors(value)]
    if bool(bad.any()) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ConfigError(
            f"it returned {float(values.detach()[bad][0])} for {int(bad.sum())} of {len(values)} {UNIT[items]}s",
            where=name,
            why="Its inputs are finite numbers.",
            fix="look for a division by 0, a log of 0 or an exp that overflows, and compute the loss without them",
        )


def _refusal(name: str, what: str, items: Items) -> ConfigError:
    return ConfigError(
        what,
        where=name,
        why="Weights, sums and counts are taken item by item.",
        fix=f"return a tensor with one loss value per {UNIT[items]}, in order",
    )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _numbers(inputs: dict[str, Any], items: Items) -> list[int]:
    """How many values may come back: one per item; or one per labelled response, as others add 0. Empty if unknown."""
    if items == "groups":
        return [int((inputs["group"].diff() != 0).sum()) + 1] if "group" in inputs else []
    if items == "responses":
        return [len(inputs["label"]), int((inputs["label"] != 0).sum())]
    for value in inputs.values():
        tensors = _tensors(value)
        if tensors:
            return [len(tensors[0])]
    return []


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Logps):
        return [value.sum_S, value.token_N]
    return [one for one in value if isinstance(one, Tensor)] if isinstance(value, tuple) else []
