"""How much of a source is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a source an epoch has: one of these is set, or none for weight 1."""

    weight: float | None = None
    share: float | None = None
    count: int | None = None
