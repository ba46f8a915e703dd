"""Answer Ctrl-C, SIGTERM and SIGHUP: the first one stops a command cleanly, the second one ends it at once (code 130).

The first signal has a different effect in different parts of a command:

    AT_ONCE   end the process with code 75: nothing has begun (imports)
    RAISE     raise StopRequest at the next instruction (reading, loading, evaluation, sampling, requests to servers)
    CHECK     note the request; `check` raises StopRequest (a training step, between its micro-batches)
    NOTE      note the request; `requested` tells (updates that must be completed, checkpoints, the final model)

Python runs a signal handler only between two instructions, so a long computation in C delays it. A thread therefore
receives the signals, too. It reports the delay, ends the process at the second signal, even in the middle of a
computation, and repeats a request that a library has swallowed.

Python prints and drops an error that is raised in a callback of a weak reference or in `__del__`. A StopRequest that is
lost in this way is not printed, and it is raised again at once.

A signal that comes again within SAME_S is the same request: a supervisor may signal the process and its group.

The functions have an effect only inside `guard`, and only in the main thread, where Python runs signal handlers.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

AT_ONCE, RAISE, CHECK, NOTE = "at once", "raise", "check", "note"
STOPPED, KILLED = 75, 130  # exit codes
PATIENCE_S = 2.0  # without an answer to the first signal; then the thread reports the delay
REPEAT_S = 1.0  # between two attempts to raise StopRequest, the first of them after PATIENCE_S
LONGEST_ANSWER = 2  # attempts that do not disturb code that handles a StopRequest
SAME_S = 0.2  # within which a second signal is part of the first
NUDGE_S = 0.1  # after which a signal interrupts again what waits for input, see `_watch`
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
LOST_S = 0.005  # after which a StopRequest that Python dropped is raised again
LOST = 253  # byte for the thread: Python dropped a StopRequest
USER, NOT_USER = 254, 255  # bytes for the thread: Ctrl-C belongs to the user's dialogue from here on, or no longer
REPEAT = getattr(signal, "SIGURG", None)  # sent to this process by the thread; None on Windows
AGAIN, RERUN = "press Ctrl-C again to stop now", "stopped: rerun the same command to resume"
TELLS_FD = "PREFTUNE_TELLS_FD"  # a pipe with one byte; see `one_tells`


class StopRequest(KeyboardInterrupt):
    """Raised once by the first Ctrl-C or SIGTERM. Like KeyboardInterrupt, it passes through `except Exception`."""


@dataclass
class _State:
    """What has been requested, and how it is answered.

    say       prints a line
    at        time of the first signal, `number` is its number
    raised    the request has raised StopRequest, or was answered
    nudged    the thread sends REPEAT only to interrupt what waits
    lost      Python dropped a StopRequest; `dropping` while it still does
    write_fd  wakes the thread up
    after     the handler of signals after the guard; None: those from before it
    """

    say: Callable[[str], None]
    mode: str = NOTE
    together: bool = False
    requested: bool = False
    at: float = 0.0
    number: int = 0
    raised: bool = False
    nudged: bool = False
    lost: bool = False
    dropping: bool = False
    reported: bool = False
    repeats: int = 0
    write_fd: int = -1
    after: Callable[[int, Any], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_state: _State | None = None
_ending, _ended_by = threading.Lock(), 0  # the thread that ends the process


def print_line(text: str) -> None:
    """Print a line to stderr, without buffers, so that a signal handler can call it."""
    os.write(2, f"{text}\n".encode())


@contextmanager
def guard(say: Callable[[str], None] = print_line) -> Iterator[None]:
    """Note requests to stop inside this context, see `requested`. It can be nested; only the outermost one counts.

    A request that came too late to stop anything is sent to the process again at the end, for the handlers from before.
    """
    global _state
    if _state is not None or not _in_main_thread():
        yield
        return
    _state = state = _State(say)
    numbers = [*SIGNALS, *([REPEAT] if REPEAT is not None else [])]
    handlers = [(number, signal.signal(number, _answer)) for number in numbers if not _ignored(number)]
    try:
        with _watched(state), _dropped_requests(state):
            yield
    finally:
        _state = None
        for number, handler in handlers:
            signal.signal(number, state.after if state.after and number in SIGNALS else handler)
    if state.requested and not state.raised:
        os.kill(os.getpid(), state.number)


def answer_after_guard(handler: Callable[[int, Any], None]) -> None:
    """From the end of the outermost `guard` on, answer signals with `handler`, not with the handlers from before."""
    if _state is not None:
        _state.after = handler


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
            _raise(state)
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
    _tell(USER)
    before = signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _tell(NOT_USER)


def requested() -> bool:
    """Return whether a signal has requested to stop."""
    return _state is not None and _state.requested


def answered() -> None:
    """Note that the command stops because of the request, so that the signal is not sent again at the end."""
    if _state is not None:
        _state.raised = True


@contextmanager
def one_tells() -> Iterator[int]:
    """Let only one process tell the user that a command has stopped: this one, or one that inherits the descriptor."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"1")
    os.close(write_fd)
    os.environ[TELLS_FD] = str(read_fd)
    try:
        yield read_fd
    finally:
        del os.environ[TELLS_FD]
        os.close(read_fd)


def tells() -> bool:
    """Return whether this process tells the user that the command has stopped: the first that calls it does."""
    return TELLS_FD not in os.environ or bool(os.read(int(os.environ[TELLS_FD]), 1))


def check() -> None:
    """Raise StopRequest if a request was noted inside `between_checks`."""
    if _state is not None and _state.requested and _state.mode == CHECK and _in_main_thread():
        _raise(_state)


def caused(error: BaseException | None) -> bool:
    """Return whether `error` is a StopRequest, or was raised because of one."""
    while error is not None:
        if isinstance(error, StopRequest):
            return True
        error = error.__cause__ or error.__context__
    return False


def _ignored(number: int) -> bool:
    """Return whether the user wants a program that outlives its terminal (nohup)."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN


def _raise(state: _State) -> NoReturn:
    state.raised = True
    raise StopRequest


def _tell(byte: int) -> None:
    """Send the thread a byte. It comes in the order of the signals."""
    if _state is not None and _state.write_fd >= 0:
        os.write(_state.write_fd, bytes([byte]))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _answer(number: int, _frame: object) -> None:
    """The handler of all signals. Python calls it in the main thread, between two instructions."""
    state = _state
    if state is None:
        return
    if number == REPEAT:
        _answer_repeated(state)
        return
    if state.requested:
        if time.monotonic() - state.at >= SAME_S:
            _end(KILLED)
        return
    state.requested, state.at, state.number = True, time.monotonic(), number
    if state.mode == AT_ONCE:
        _end(STOPPED)
    if state.mode == RAISE:
        state.reported = True  # no delay
        _raise(state)
    _report(state)


def _answer_repeated(state: _State) -> None:
    """Answer REPEAT, which the thread sends."""
    nudged, state.nudged = state.nudged, False
    if state.dropping:  # Python would drop the error again
        _tell(LOST)
    elif state.lost:
        state.lost = False
        if state.mode == RAISE:
            _raise(state)
    elif not nudged:
        state.repeats += 1
        # while a StopRequest is being handled, it may be saving results; a library that swallowed it may do anything
        if state.mode == RAISE and (not caused(sys.exc_info()[1]) or state.repeats > LONGEST_ANSWER):
            _raise(state)


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
    global _ended_by
    if not _ending.acquire(blocking=False) and _ended_by != threading.get_ident():
        time.sleep(REPEAT_S)  # the other thread prints and ends the process
        os._exit(code)
    _ended_by = threading.get_ident()
    try:
        if code == STOPPED and not tells():
            return
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
        print_line("stopped before anything was done" if code == STOPPED else "stopped at once, as requested twice")
        print_line("  next: rerun the same command" + " to resume" * (code == KILLED))
    finally:
        os._exit(code)


@contextmanager
def _dropped_requests(state: _State) -> Iterator[None]:
    """Inside this context, a StopRequest that Python drops is raised again, and other errors are reported as before."""
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, StopRequest):
            before(dropped)
            return
        state.dropping, state.lost, state.raised = True, True, False
        _tell(LOST)
        state.dropping = False

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
    """Receive the number of each signal as a byte; 0 ends the thread.

    A signal that arrives just before the main thread begins to wait for input does not interrupt the waiting, so the
    thread interrupts it NUDGE_S later. Python then runs the handler of the signal.
    """
    main = threading.main_thread().ident
    assert main is not None
    assert REPEAT is not None
    first = due = nudge = 0.0  # times of the first signal, of what follows from it, and of the next nudge
    dialogues = 0  # contexts of `ctrl_c`
    with selectors.DefaultSelector() as selector:
        selector.register(read_fd, selectors.EVENT_READ)
        while True:
            next_times = [moment for moment in (due, nudge) if moment]
            wait = max(0.0, min(next_times) - time.monotonic()) if next_times else None
            for byte in os.read(read_fd, 64) if selector.select(wait) else b"":
                if byte == 0:
                    return
                nudge = time.monotonic() + LOST_S if byte == LOST else nudge
                dialogues += (byte == USER) - (byte == NOT_USER)
                if byte not in SIGNALS:
                    continue
                nudge = nudge or time.monotonic() + NUDGE_S
                if byte == signal.SIGINT and dialogues:
                    continue
                if first and time.monotonic() - first >= SAME_S:
                    _end(KILLED)
                if state.mode == AT_ONCE:
                    _end(STOPPED)
                first = first or time.monotonic()
                due = due or first + PATIENCE_S
            now = time.monotonic()
            if nudge and now >= nudge:
                nudge, state.nudged = 0.0, True
                signal.pthread_kill(main, REPEAT)
            elif due and now >= due:
                _report(state)
                due = now + REPEAT_S
                signal.pthread_kill(main, REPEAT)


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
