"""Ctrl-C, SIGTERM and SIGHUP in each mode of preftune.stop, and at the second signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from preftune import stop

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def python(code: str) -> subprocess.CompletedProcess[str]:
    program = "import os, signal, sys, threading, time; from preftune import stop\n" + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interruptible_part_is_left_at_once(number: int) -> None:
    done = []

    def work() -> None:
        done.append(1)
        send(number)
        done.append(2)

    with stop.guard(), pytest.raises(stop.StopRequest), stop.interruptible():
        work()
    assert done == [1]


@pytest.mark.parametrize("mode", [stop.between_checks, stop.deferred])
def test_a_request_is_noted_elsewhere_and_raised_by_the_next_interruptible_part(mode: Callable[[], object]) -> None:
    messages: list[str] = []
    with stop.guard(messages.append):
        with mode():  # type: ignore[attr-defined]
            send()
            assert stop.requested()
        with pytest.raises(stop.StopRequest), stop.interruptible():
            pytest.fail("the part began")
    assert len(messages) == 1
    assert "press Ctrl-C again to stop now" in messages[0]
    assert not stop.requested()


def test_check_raises_a_noted_request_only_between_checks() -> None:
    with stop.guard(lambda _: None):
        with stop.between_checks():
            stop.check()
            send()
            with pytest.raises(stop.StopRequest):
                stop.check()
            with stop.deferred():
                stop.check()
        stop.check()


def test_guard_restores_the_handlers_and_the_wakeup_file() -> None:
    before = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGURG)]
    with stop.guard():
        inside = signal.getsignal(signal.SIGINT)
        with stop.guard():
            assert signal.getsignal(signal.SIGINT) is inside
        assert signal.getsignal(signal.SIGINT) is inside
    assert [signal.getsignal(number) for number in (*NUMBERS, signal.SIGURG)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "preftune signals" not in [thread.name for thread in threading.enumerate()]


def test_nothing_happens_outside_of_a_guard_and_in_other_threads() -> None:
    results: list[bool] = []

    def work() -> None:
        with stop.guard(), stop.interruptible():
            stop.check()
            results.append(stop.requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with stop.interruptible(), stop.deferred():
        stop.check()
    assert results == [False]


def test_a_request_is_recognised_behind_the_error_of_a_library() -> None:
    def library(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            raise RuntimeError("cannot load") from error

    with stop.guard(), pytest.raises(RuntimeError) as caught, stop.interruptible():
        library(send)
    assert stop.caused(caught.value)
    assert not stop.caused(RuntimeError("another"))


def test_a_request_that_a_library_swallows_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "PATIENCE_S", 0.05)
    reached = []

    def swallow() -> None:
        with suppress(KeyboardInterrupt):
            send()
        threading.Event().wait(60)
        reached.append(True)

    with stop.guard(lambda _: None), pytest.raises(stop.StopRequest), stop.interruptible():
        swallow()
    assert reached == []


@pytest.mark.parametrize("where", ["a callback", "a method"])
def test_a_request_that_python_drops_is_raised_again_and_not_printed(where: str) -> None:
    """Python drops an error in a callback of a weak reference or in `__del__`, and prints a traceback."""
    done = python(
        f"""
import weakref
class Thing:
    def __del__(self):
        if {where == "a method"}:
            os.kill(os.getpid(), signal.SIGTERM)
with stop.guard(), stop.interruptible():
    try:
        thing = Thing()
        if {where == "a callback"}:
            kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        del thing
        threading.Event().wait(60)
    except stop.StopRequest:
        os._exit(0)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_other_errors_that_python_drops_are_printed() -> None:
    done = python(
        """
class Thing:
    def __del__(self):
        raise ValueError("dropped")
with stop.guard(), stop.interruptible():
    Thing()
"""
    )
    assert done.returncode == 0
    assert "ValueError: dropped" in done.stderr


def test_an_answer_is_not_disturbed_by_a_repeated_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that handles a StopRequest may save results."""
    monkeypatch.setattr(stop, "PATIENCE_S", 0.01)
    monkeypatch.setattr(stop, "REPEAT_S", 60.0)
    saved = []

    def save() -> None:
        try:
            send()
        finally:
            threading.Event().wait(0.15)
            saved.append(True)

    with stop.guard(lambda _: None), pytest.raises(stop.StopRequest), stop.interruptible():
        save()
    assert saved == [True]


@pytest.mark.parametrize("mode", ["interruptible", "between_checks", "deferred"])
def test_the_second_signal_ends_the_process_with_130(mode: str) -> None:
    done = python(
        f"""
with stop.guard(), stop.{mode}():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass
    time.sleep(2 * stop.SAME_S)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    )
    assert done.returncode == 130
    assert "stopped at once" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_second_signal_ends_a_computation_in_c() -> None:
    """Python cannot run a signal handler before it ends. The delay of the first signal is reported."""
    done = python(
        """
import hashlib
def press():
    os.kill(os.getpid(), signal.SIGTERM)
    received.wait()
    time.sleep(2 * stop.SAME_S)
    os.kill(os.getpid(), signal.SIGTERM)
received = threading.Event()
def say(text):
    stop.print_line(text)
    received.set()
with stop.guard(say), stop.between_checks():
    threading.Timer(0.1, press).start()
    hashlib.pbkdf2_hmac("sha512", b"", b"", 200_000_000)
"""
    )
    assert done.returncode == 130
    assert done.stderr.startswith("stopping after this step; press Ctrl-C again to stop now")


@pytest.mark.parametrize("where", ["at the first instruction", "in C"])
def test_at_once_ends_the_process_with_75(where: str) -> None:
    work = "pass" if where != "in C" else "import hashlib; hashlib.pbkdf2_hmac('sha512', b'', b'', 200_000_000)"
    done = python(
        f"""
with stop.guard(), stop.at_once():
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    {work}
    time.sleep(60)
"""
    )
    assert done.returncode == 75
    assert done.stderr == "stopped before anything was done\n  next: rerun the same command\n"


def test_a_signal_that_comes_twice_in_a_moment_is_one_request() -> None:
    """A supervisor may send it to the process and to its group."""
    done = python(
        """
with stop.guard(lambda _: None), stop.between_checks():
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(stop.SAME_S / 20)
    time.sleep(stop.SAME_S)
    try:
        stop.check()
    except stop.StopRequest:
        os._exit(0)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "error"), [("SIGTERM", "StopRequest"), ("SIGINT", "KeyboardInterrupt")])
def test_a_signal_interrupts_a_dialogue_that_began_to_wait_just_after_it(name: str, error: str) -> None:
    """Another thread receives it, so the wait of the main thread is not interrupted by the signal itself."""
    done = python(
        f"""
import select
with stop.guard(), stop.interruptible(), stop.ctrl_c():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])
    threading.Timer(0.1, os.kill, [os.getpid(), signal.{name}]).start()
    try:
        select.select([], [], [], 60)
    except KeyboardInterrupt as raised:
        os._exit(0 if type(raised).__name__ == "{error}" else 7)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_in_a_dialogue_is_not_counted() -> None:
    done = python(
        """
pressed = []
with stop.guard(), stop.interruptible():
    with stop.ctrl_c(lambda *_: pressed.append(1)):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2 * stop.SAME_S)
    time.sleep(2 * stop.PATIENCE_S)
os._exit(len(pressed))
"""
    )
    assert (done.returncode, done.stderr) == (3, "")


def test_a_request_that_stopped_nothing_is_sent_again_after_the_guard() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with stop.guard(lambda _: None), stop.deferred():
            send()
            assert not received
        assert received == [1]
        with suppress(stop.StopRequest), stop.guard(lambda _: None), stop.interruptible():
            send()
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize(("nohup", "code"), [(False, 75), (True, 3)])
def test_the_end_of_the_terminal_is_a_request_except_under_nohup(nohup: bool, code: int) -> None:
    done = python(
        f"""
signal.signal(signal.SIGHUP, signal.SIG_IGN if {nohup} else signal.SIG_DFL)
with stop.guard(), stop.at_once():
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.2)
    os._exit(3)
"""
    )
    assert done.returncode == code


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_signal_to_a_forked_process_does_not_stop_its_parent() -> None:
    done = python(
        """
ready, tell = os.pipe()
with stop.guard(), stop.interruptible():
    child = os.fork()
    if child == 0:
        os.write(tell, b"1")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    time.sleep(0.1)
    print(os.WTERMSIG(status) == signal.SIGTERM, stop.requested())
"""
    )
    assert (done.stdout, done.returncode) == ("True False\n", 0), done.stderr


def test_an_output_whose_reader_is_gone_does_not_end_the_run() -> None:
    """Ctrl-C also stops the reader of a pipe, and rich turns the broken pipe into SystemExit."""

    def say(_line: str) -> None:
        raise SystemExit(1)

    with stop.guard(say), stop.between_checks(say):
        send(signal.SIGINT)
        with pytest.raises(stop.StopRequest):
            stop.check()


def test_signals_after_the_guard_have_the_answer_of_a_finished_command() -> None:
    """Between the end of a command and that of its process, a signal must not change the exit code."""
    handlers = {number: signal.getsignal(number) for number in stop.SIGNALS}
    answered: list[int] = []
    try:
        with stop.guard(lambda text: None):
            stop.answer_after_guard(lambda number, frame: answered.append(number))
            signal.raise_signal(signal.SIGTERM)
        assert answered == [signal.SIGTERM]  # it stopped nothing, so it was sent again
        signal.raise_signal(signal.SIGINT)
        assert answered == [signal.SIGTERM, signal.SIGINT]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
