"""A mark for losses that couple all items of an optimizer step, e.g. by sorting or by a baseline over the batch.

Such a loss is not a sum over micro-batches. The loop then computes it on the log-probs of the whole step
(one more forward pass where a step has several micro-batches), so that the gradient never depends on the split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "couples_whole_step"


def joint(loss: F) -> F:
    """Mark `loss` as one that must see all items of an optimizer step at once."""
    setattr(loss, _MARK, True)
    return loss


def is_joint(loss: Callable[..., Any]) -> bool:
    return bool(getattr(loss, _MARK, False))
