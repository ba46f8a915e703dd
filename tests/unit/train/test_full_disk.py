"""A full disk is waited for; any other error is not."""

from __future__ import annotations

import errno

import pytest

from preftune.errors import StorageError, writing
from preftune.train.full_disk import RETRY_S, WAIT_S, patiently


class SafetensorError(Exception):
    pass


def failing(errors: list[Exception]) -> object:
    def write() -> str:
        if errors:
            with writing("file"):
                raise errors.pop()
        return "written"

    return write


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # of the tokenizers library
    ],
)
def test_a_full_disk_is_waited_for_and_reported_once(error: Exception) -> None:
    messages, slept = list[str](), list[float]()
    assert patiently(failing([error, error, error]), messages.append, slept.append) == "written"  # type: ignore[arg-type]
    assert slept == [RETRY_S] * 3
    assert len(messages) == 1
    assert "free some space" in messages[0]


def test_other_errors_and_a_disk_that_stays_full_are_raised() -> None:
    slept: list[float] = []
    with pytest.raises(StorageError, match="Permission"):
        patiently(failing([OSError(errno.EACCES, "Permission denied")]), print, slept.append)  # type: ignore[arg-type]
    assert slept == []
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="No space"):
        patiently(failing([full] * 10_000), lambda text: None, slept.append)  # type: ignore[arg-type]
    assert sum(slept) == WAIT_S
