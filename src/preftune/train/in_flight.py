"""Write a checkpoint in a thread while training continues.

The thread writes a copy of the state, which is taken in the training step. At most one checkpoint is in flight. It is
completed before the next one, at the end of the run, and before the run stops or fails. An error of the thread is
raised when the checkpoint is completed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from preftune.model.cpu_memory import available_to_cpu
from preftune.ranks import group
from preftune.ranks.environment import place
from preftune.ranks.shard import any_sharded, local

T = TypeVar("T")
SMALL = 1 << 26  # bytes; a smaller checkpoint is written at once
SPARE = 2.0  # a copy must fit this many times in the free memory


class InThread(Generic[T]):
    """A computation in a thread."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[work], name="preftune checkpoint")
        self._thread.start()

    def running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._thread.is_alive()

    def result(self) -> T:
        """Wait for the end, and return the value. Raises the exception of the computation."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._value[0]

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._value.append(work())
        except BaseException as error:
            self._error = error


def sizes_of(masters: Sequence[Tensor], bytes_per_weight: int) -> tuple[int, int]:
    """Return the bytes of a checkpoint, and of the copies that the ranks of this machine take for the thread."""
    size = bytes_per_weight * sum(master.numel() for master in masters)
    if not any_sharded(list(masters)):
        return size, size
    return size, place().local_world * bytes_per_weight * sum(local(master).numel() for master in masters)


def in_background(size: int, copied: int) -> bool:
    """Return whether a thread writes a checkpoint, of which `copied` bytes are copied on this machine.

    It must not be small, and the copies must fit in the free memory of all machines. All ranks must call it.
    """
    return size >= SMALL and group.all_min(available_to_cpu() / max(1, copied)) >= SPARE
