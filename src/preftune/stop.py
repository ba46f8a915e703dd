"""Answer Ctrl-C and SIGTERM: the first one stops a command cleanly, the second one ends the process at once (code 130).

The first signal has a different effect in different parts of a command:

    AT_ONCE   end the process with code 75: nothing has begun (imports)
    RAISE     raise StopRequest at the next instruction (reading, loading, evaluation, sampling, requests to servers)
    CHECK     note the request; `check` raises StopRequest (a training step, between its micro-batches)
    NOTE      note the request; `requested` tells (updates that must be completed, checkpoints, the final model)

Python runs a signal handler only between two instructions, so a long computation in C delays it. A thread therefore
receives the signals, too. It reports the delay, ends the process at the second signal, even in the middle of a
computation, and repeats a request that a library has swallowed.

The functions have an effect only inside `guard`, and only in the main thread, where Python runs signal handlers.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

AT_ONCE, RAISE, CHECK, NOTE = "at once", "raise", "check", "note"
STOPPED, KILLED = 75, 130  # exit codes
PATIENCE_S = 2.0  # without an answer to the first signal; then the thread reports the delay
REPEAT_S = 1.0  # between two attempts to raise StopRequest, the first of them after PATIENCE_S
LONGEST_ANSWER = 2  # attempts that do not disturb code that handles a StopRequest
SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = getattr(signal, "SIGURG", None)  # sent to this process by the thread; None on Windows
AGAIN = "press Ctrl-C again to stop now"


class StopRequest(KeyboardInterrupt):
    """Raised once by the first Ctrl-C or SIGTERM. Like KeyboardInterrupt, it passes through `except Exception`."""


@dataclass
class _State:
    """What has been requested, and how it is answered. `say` prints a line. `write_fd` wakes the thread up."""

    say: Callable[[str], None]
    mode: str = NOTE
    together: bool = False
    requested: bool = False
    reported: bool = False
    repeats: int = 0
    write_fd: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)


_state: _State | None = None


def print_line(text: str) -> None:
    """Print a line to stderr, without buffers, so that a signal handler can call it."""
    os.write(2, f"{text}\n".encode())


@contextmanager
def guard(say: Callable[[str], None] = print_line) -> Iterator[None]:
    """Note requests to stop inside this context, see `requested`. It can be nested; only the outermost one counts."""
    global _state
    if _state is not None or not _in_main_thread():
        yield
        return
    _state = state = _State(say)
    numbers = [*SIGNALS, *([REPEAT] if REPEAT is not None else [])]
    handlers = [(number, signal.signal(number, _answer)) for number in numbers]
    try:
        with _watched(state):
            yield
    finally:
        _state = None
        for number, handler in handlers:
            signal.signal(number, handler)


@contextmanager
def _in_mode(mode: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    state = _state if _in_main_thread() else None
    if state is None:
        yield
        return
    before = state.mode, state.say
    state.mode, state.say = NOTE if state.together else mode, say or state.say
    try:
        if state.mode == RAISE and state.requested:
            raise StopRequest
        yield
    finally:
        state.mode, state.say = before


def at_once() -> AbstractContextManager[None]:
    """Inside this context, the first signal ends the process with code 75, because nothing has begun."""
    return _in_mode(AT_ONCE)


def interruptible() -> AbstractContextManager[None]:
    """Inside this context, a request raises StopRequest. A request that was noted before raises it at the beginning."""
    return _in_mode(RAISE)


def between_checks(say: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
    """Inside this context, a request is noted, and `check` raises StopRequest. `say` prints that it was noted."""
    return _in_mode(CHECK, say)


def deferred() -> AbstractContextManager[None]:
    """Inside this context, a request is only noted."""
    return _in_mode(NOTE)


@contextmanager
def together(several: bool) -> Iterator[None]:
    """Inside this context, a request is only noted if there are `several` processes, which must stop together."""
    state = _state if _in_main_thread() else None
    if state is None or not several:
        yield
        return
    state.together = True
    try:
        yield
    finally:
        state.together = False


@contextmanager
def ctrl_c(answer: Callable[..., object] = signal.default_int_handler) -> Iterator[None]:
    """Inside this context, Ctrl-C calls `answer`, by default raising KeyboardInterrupt, and does not request to stop.

    SIGTERM still does. For a dialogue with the user, who presses Ctrl-C more than once.
    """
    if not _in_main_thread():
        yield
        return
    wakeup, before = signal.set_wakeup_fd(-1), signal.signal(signal.SIGINT, answer)  # the thread must not count it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def requested() -> bool:
    """Return whether a signal has requested to stop."""
    return _state is not None and _state.requested


def check() -> None:
    """Raise StopRequest if a request was noted inside `between_checks`."""
    if _state is not None and _state.requested and _state.mode == CHECK and _in_main_thread():
        raise StopRequest


def caused(error: BaseException | None) -> bool:
    """Return whether `error` is a StopRequest, or was raised because of one."""
    while error is not None:
        if isinstance(error, StopRequest):
            return True
        error = error.__cause__ or error.__context__
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _answer(number: int, _frame: object) -> None:
    """The handler of all signals. Python calls it in the main thread, between two instructions."""
    state = _state
    if state is None:
        return
    if number == REPEAT:
        state.repeats += 1
        # while a StopRequest is being handled, it may be saving results; a library that swallowed it may do anything
        if state.mode == RAISE and (not caused(sys.exc_info()[1]) or state.repeats > LONGEST_ANSWER):
            raise StopRequest
        return
    if state.requested:
        _end(KILLED)
    state.requested = True
    if state.mode == AT_ONCE:
        _end(STOPPED)
    if state.mode == RAISE:
        state.reported = True  # no delay
        raise StopRequest
    _report(state)


def _report(state: _State) -> None:
    """Print once that the request was received but cannot be answered yet."""
    with state.lock:
        already, state.reported = state.reported, True
    if not already:
        what = "the current operation ends" if state.mode == RAISE else "this step"
        after = "when" if state.mode == RAISE else "after"
        lost = "" if state.mode == RAISE else "; steps since the last checkpoint would be lost"
        # the reader of the output may be gone (a pipe to tee); an error here would end the run without a checkpoint
        with suppress(BaseException):
            state.say(f"stopping {after} {what}; {AGAIN}{lost}")


def _end(code: int) -> None:
    """End the process at once. Files are written under temporary names, so none is left half-written."""
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
        print_line("stopped before anything was done" if code == STOPPED else "stopped at once, as requested twice")
        print_line("  next: rerun the same command" + " to resume" * (code == KILLED))
    finally:
        os._exit(code)


@contextmanager
def _watched(state: _State) -> Iterator[None]:
    """Start the thread that receives the signals, and end it."""
    if REPEAT is None:  # Windows
        yield
        return
    read_fd, state.write_fd = os.pipe()
    for fd in (read_fd, state.write_fd):
        os.set_blocking(fd, False)
    previous = signal.set_wakeup_fd(state.write_fd, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(state, read_fd), name="preftune signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.write(state.write_fd, b"\0")
        thread.join()
        for fd in (read_fd, state.write_fd):
            os.close(fd)


def _watch(state: _State, read_fd: int) -> None:
    """Receive the number of each signal as a byte; 0 ends the thread."""
    received = 0
    main = threading.main_thread().ident
    assert main is not None
    assert REPEAT is not None
    with selectors.DefaultSelector() as selector:
        selector.register(read_fd, selectors.EVENT_READ)
        wait: float | None = None
        while True:
            ready = selector.select(wait)
            if ready:
                numbers = os.read(read_fd, 64)
                if 0 in numbers:
                    return
                received += sum(number in SIGNALS for number in numbers)
                if received > 1:
                    _end(KILLED)
                if received and state.mode == AT_ONCE:
                    _end(STOPPED)
                wait = wait or (PATIENCE_S if received else None)
                continue
            _report(state)
            signal.pthread_kill(main, REPEAT)
            wait = REPEAT_S


def _forget_in_child() -> None:
    """In a forked process, restore the default handlers: its signals must not stop the parent."""
    global _state
    if _state is not None and _state.write_fd >= 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _state = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
