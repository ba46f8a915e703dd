"""Wait while the disk is full, so that the end of a run is not lost."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from preftune import stop
from preftune.errors import StorageError

T = TypeVar("T")
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
RETRY_S, WAIT_S = 10.0, 1800.0


def is_full(error: StorageError) -> bool:
    """Return whether a file could not be written because the disk or a quota is full."""
    cause = error.__cause__
    # safetensors reports errors of the system as text
    return getattr(cause, "errno", None) in FULL or any(f"os error {number})" in str(cause) for number in FULL)


def patiently(write: Callable[[], T], say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> T:
    """Return `write()`. While the disk is full, try again every RETRY_S for up to WAIT_S, or until a stop request.

    Raises StorageError if the file can still not be written, or if the reason is a different one.
    """
    waited = 0.0
    while True:
        try:
            return write()
        except StorageError as error:
            if not is_full(error) or waited >= WAIT_S or stop.requested():
                raise
            if not waited:
                minutes = f"{WAIT_S / 60:.0f} minutes"
                say(f"{error}\n  free some space: it is tried again every {RETRY_S:.0f} s for up to {minutes}")
        sleep(RETRY_S)
        waited += RETRY_S
