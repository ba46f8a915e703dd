"""Turn Ctrl-C, SIGTERM and out-of-memory errors into short messages without a traceback."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preftune.errors import ConfigError, PreftuneError, Stopped
from preftune.model.attention import restore_attention
from preftune.model.memory import out_of_memory

REPEAT_S = 4.0  # long enough to save the reference log-probs before the interrupt is raised again


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
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    can_repeat = hasattr(signal, "setitimer")  # not on Windows
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if can_repeat else [])]

    def interrupt(*_: Any) -> None:
        if can_repeat:  # some libraries swallow KeyboardInterrupt, so raise it again until it gets through
            signal.setitimer(signal.ITIMER_REAL, REPEAT_S)
        raise KeyboardInterrupt

    handlers = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(
            "stopped before the first step; nothing was trained", fix="rerun the same command to start again"
        ) from stop
    finally:
        if can_repeat:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
