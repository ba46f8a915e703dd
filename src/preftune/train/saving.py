"""When to save a checkpoint: every N steps, or by time (`train.save_every: auto`).

By time, a checkpoint is due INTERVAL_S after the last one, if saving has then stopped training for at most SHARE of the
time so far, and the last one is complete.
The cost of the next one is that of the last one, or an estimate from its size before the first one. So a run loses
little time when it is killed, and large checkpoints of slow disks are written less often.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

SaveEvery = int | Literal["auto"] | None
INTERVAL_S = 120.0
SHARE = 0.025
BYTES_PER_S = 1e9  # of the estimate: hashing and writing


@dataclass
class Saving:
    """Decides when a checkpoint is due. `size` is its number of bytes, and `copied` those that a thread needs."""

    every: SaveEvery
    size: int
    copied: int
    now: Callable[[], float] = time.monotonic
    spent: float = 0.0
    cost: float | None = None
    _began: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._last = self.now()

    def due(self, step: int, is_busy: bool = False) -> bool:
        """Return whether to save a checkpoint after `step`. `is_busy`: the last one is still being written."""
        if self.every != "auto":
            return self.every is not None and step % self.every == 0
        now, cost = self.now(), self.size / BYTES_PER_S if self.cost is None else self.cost
        return not is_busy and now - self._last >= INTERVAL_S and self.spent + cost <= SHARE * (now - self._began)

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint was saved, or that an attempt failed, in `seconds`."""
        self.cost, self._last = seconds, self.now()
        self.spent += seconds
