"""Turn Ctrl-C, SIGTERM and out-of-memory errors into short messages without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preftune import stop
from preftune.errors import ConfigError, PreftuneError
from preftune.model.attention import restore_attention
from preftune.model.memory import out_of_memory
from preftune.train.loop import stopped


@contextmanager
def before_first_step(model: Any = None) -> Iterator[None]:
    """Guard the preparation of a run. If it fails, a model in memory gets its attention implementation back."""
    with enough_memory(), stoppable():
        try:
            yield
        except BaseException:
            if model is not None:
                restore_attention(model)
            raise


@contextmanager
def enough_memory() -> Iterator[None]:
    """Convert an out-of-memory error inside this context to a ConfigError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, PreftuneError) or not out_of_memory(error):
            raise
        raise ConfigError(
            "out of memory",
            where="run",
            why=str(error).splitlines()[0] if str(error) else "",
            fix="train with lora, set model.gradient_checkpointing=true, or lower data.max_length; --dry-run shows "
            "what the memory is used for",
        ) from error


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on Ctrl-C or SIGTERM. For use before the first step, when there are no weights to save."""
    with stop.guard():
        try:
            with stop.interruptible():
                yield
        except BaseException as error:
            if stop.caused(error):
                raise stopped(0) from error
            raise
