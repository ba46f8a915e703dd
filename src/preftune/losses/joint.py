"""A decorator for losses that couple all items of an optimizer step, such as losses that sort or use a mean.

Such a loss is not a sum over micro-batches. The training loop computes it on the log-probs of the whole step, with an
extra forward pass if the step has several micro-batches, so the gradient does not depend on the micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "couples_whole_step"


def joint(loss: F) -> F:
    """Mark `loss` as a loss that needs all items of an optimizer step at once."""
    setattr(loss, _MARK, True)
    return loss


def is_joint(loss: Callable[..., Any]) -> bool:
    return bool(getattr(loss, _MARK, False))
