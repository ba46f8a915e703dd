"""Check the values that a user's own loss returns, before the run trains on them."""

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
    """Return the user's loss `function` with checks; `name` is shown in messages.

    The result must be a floating-point tensor with one value per item. On the first call with gradients, it must also
    depend on the policy, and be finite if its inputs are. Raises ConfigError otherwise.
    """

    is_checked = False

    @wraps(function)
    def loss(**inputs: Any) -> Tensor:
        nonlocal is_checked
        values = function(**inputs)
        if not isinstance(values, Tensor):
            hint = "; sum and count are computed from the values" if isinstance(values, LossOutput | tuple) else ""
            kind = "None" if values is None else f"a {type(values).__name__}"
            raise _error(name, f"the loss returned {kind}, not a tensor{hint}", items)
        if not values.is_floating_point():
            raise _error(name, f"the loss returned {values.dtype}, not floating-point numbers", items)
        counts = _valid_counts(inputs, items)
        if values.dim() != 1 or (counts and len(values) not in counts):
            number = f" for {counts[0]} {UNIT[items]}{'s' * (counts[0] != 1)}" if counts else ""
            hint = " (did it take the mean or the sum?)" if values.dim() == 0 else ""
            raise _error(name, f"the loss returned the shape {tuple(values.shape)}{number}{hint}", items)
        if not is_checked and torch.is_grad_enabled():
            _require_gradient(values, inputs, name)
            _require_finite(values, inputs, name, items)
            is_checked = True
        return values

    return loss


def _require_gradient(values: Tensor, inputs: dict[str, Any], name: str) -> None:
    """Raise ConfigError if inputs require a gradient, but `values` depend on none of them."""
    trained = [tensor for value in inputs.values() for tensor in _tensors(value) if tensor.requires_grad]
    if not trained:
        return
    if values.requires_grad:
        gradients = torch.autograd.grad(values.sum(), trained, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            return
    raise ConfigError(
        "its result has no gradient, so it cannot train the policy",
        where=name,
        why="the result does not depend on the policy, or detach(), item(), numpy() or no_grad() removed the gradient",
        fix="compute the loss from `policy` (or a different input that depends on it) with torch operations",
    )


def _require_finite(values: Tensor, inputs: dict[str, Any], name: str, items: Items) -> None:
    """Raise ConfigError if some values are nan or infinite, although all inputs are finite."""
    bad = ~torch.isfinite(values)
    tensors = [tensor for value in inputs.values() for tensor in _tensors(value)]
    if bool(bad.any()) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ConfigError(
            f"the loss returned {float(values.detach()[bad][0])} for {int(bad.sum())} of {len(values)} {UNIT[items]}s",
            where=name,
            why="all its inputs are finite",
            fix="avoid a division by 0, a log of 0 or an overflow of exp in the loss",
        )


def _error(name: str, what: str, items: Items) -> ConfigError:
    return ConfigError(
        what,
        where=name,
        why="each item is weighted, summed and counted separately",
        fix=f"return a tensor with one loss value per {UNIT[items]}, in order",
    )


def _valid_counts(inputs: dict[str, Any], items: Items) -> list[int]:
    """Return the valid numbers of values: one per item, or one per labelled response. Empty if they are unknown."""
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
    """Return the tensors of an input of a loss."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Logps):
        return [value.sum_S, value.token_N]
    return [tensor for tensor in value if isinstance(tensor, Tensor)] if isinstance(value, tuple) else []
