"""What ends a run early: Ctrl-C, SIGTERM, or memory that runs out. Each ends with one sentence."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preftune.errors import ConfigError, PreftuneError, Stopped
from preftune.model.attention import use_own
from preftune.model.memory import out_of_memory

REPEAT_S = 4.0  # longer than it takes to write the scores of the reference


@contextmanager
def before_first_step(model: Any = None) -> Iterator[None]:
    """Guard the preparation of a run. If it fails, a model in memory gets its own attention back."""
    with enough_memory(), stoppable():
        try:
            yield
        except BaseException:
            if model is not None:
                use_own(model)
            raise


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise ConfigError where memory runs out and smaller micro-batches cannot help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, PreftuneError) or not out_of_memory(error):
            raise
        raise ConfigError(
            "out of memory",
            why=str(error).splitlines()[0] if str(error) else "",
            fix="train with lora, set model.gradient_checkpointing=true, or lower data.max_length; --dry-run shows "
            "what needs memory",
        ) from error


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on Ctrl-C or SIGTERM. Before the first step only time is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    can_repeat = hasattr(signal, "setitimer")  # not on Windows
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if can_repeat else [])]

    def interrupt(*_: Any) -> None:
        if can_repeat:  # some library imports and callbacks swallow the exception: raise it again
            signal.setitimer(signal.ITIMER_REAL, REPEAT_S)
        raise KeyboardInterrupt

    handlers = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped("stopped before the first step", fix="rerun the same command") from stop
    finally:
        if can_repeat:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
