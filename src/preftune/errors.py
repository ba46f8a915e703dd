"""The exceptions that a user meets. Each carries the exit code of its family.

    PreftuneError              1  internal error
      ConfigError              2  usage or config
      DataError                3  data
      ModelError               4  model or tokenizer
      RunError                 5  checkpoint or run folder
      NumericError             6  training stopped because a number was not finite or not what it must be
      StorageError             7  storage or permission
      IncompleteError          9  samples or verdicts are missing; what was paid for is kept
      Stopped                 75  stopped on request; the same command resumes

A message has up to four parts: where, what, why it matters, how to fix it (after a clean stop: what to do next).
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class PreftuneError(Exception):
    """Base of everything that is reported to the user without a traceback."""

    exit_code = 1
    label = "fix"

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        first = f"{where}: {what}" if where else what
        super().__init__("\n".join([first, *(f"  {part}" for part in (why, fix and f"{self.label}: {fix}") if part)]))


class ConfigError(PreftuneError, ValueError):
    """A config file, an override or a command line that cannot be meant."""

    exit_code = 2


class DataError(PreftuneError, ValueError):
    """A data file that cannot be read, or rows that cannot be trained on."""

    exit_code = 3


class ModelError(PreftuneError, ValueError):
    """A model folder, tokenizer or chat template that cannot be used."""

    exit_code = 4


class RunError(PreftuneError, RuntimeError):
    """A run folder or checkpoint that does not fit the command."""

    exit_code = 5


class NumericError(PreftuneError, ArithmeticError):
    """A loss, gradient or check that is not what it must be; the weights were not changed by it."""

    exit_code = 6


class StorageError(PreftuneError, OSError):
    """A file that cannot be written."""

    exit_code = 7


class IncompleteError(PreftuneError, RuntimeError):
    """Something outside did not answer for all of the work; what it answered is kept, and the same command goes on."""

    exit_code = 9


class Stopped(PreftuneError, RuntimeError):
    """The user asked to stop; what was trained so far is saved."""

    exit_code = 75
    label = "next"


@contextmanager
def writing(where: str | Path, fix: str = "") -> Iterator[None]:
    """What is written inside is named in a StorageError if the disk is full or the place cannot be written."""
    try:
        yield
    except Exception as error:
        # safetensors has its own class for what the system says
        if isinstance(error, StorageError) or not (isinstance(error, OSError) or "Safetensor" in type(error).__name__):
            raise
        said = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"cannot be written: {said}", where=str(where), fix=fix) from error


def require_writable(where: str | Path) -> None:
    """Raises StorageError if `where` could not be written later: asked before hours of work, and leaves nothing."""
    path = Path(where).absolute()
    parent = next(p for p in (path, *path.parents) if p.exists())
    if parent == path and not path.is_dir():
        parent = path.parent
    with writing(where, fix="choose another place"):
        tempfile.TemporaryFile(dir=parent).close()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt `name`, or the list of what exists."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
