"""The speed of a run, without the time of evaluations and of saving."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Items and tokens per second since the last reading, without the time of evaluation and saving."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since, self._items, self._tokens = now(), 0, 0

    def add(self, items: int, tokens: int) -> None:
        self._items += items
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        spent = max(self._now() - self._since, 1e-9)
        rates = {"pairs_per_s": self._items / spent, "tokens_per_s": self._tokens / spent}
        self._since, self._items, self._tokens = self._now(), 0, 0
        return rates

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside this context."""
        begin = self._now()
        yield
        self._since += self._now() - begin
