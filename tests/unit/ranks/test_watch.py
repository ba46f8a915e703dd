"""How a rank notices that another one failed. Several watches share a store in this process; no thread runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from preftune.errors import DataError, Stopped
from preftune.ranks import watch
from preftune.ranks.environment import Place
from preftune.ranks.watch import Failure, Watch, is_lost_connection


class Store:
    """The part of torch's TCPStore that a watch uses."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        if self.values.get(key, b"") == expected.encode():
            self.values[key] = desired.encode()
        return self.values[key]


class Ended(BaseException):
    """Raised in place of ending the process."""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(watch, "FIRST_S", 0.0)
    monkeypatch.setattr(watch, "BEAT_S", 0.01)
    monkeypatch.setattr(watch, "SILENCE_S", 0.1)
    return lambda store, rank, world=3: Watch(store, Place(rank, world, rank, world))


def code_of(function: Callable[..., Any], *arguments: Any) -> int:
    with pytest.raises(Ended) as ended:
        function(*arguments)
    return int(ended.value.args[0])


def never() -> int:
    raise AssertionError("only the first failure is printed")


def test_only_the_first_failure_is_printed_and_its_code_is_that_of_all(make: Callable[..., Watch]) -> None:
    store, printed = Store(), []
    first, second, third = (make(store, rank) for rank in range(3))
    assert code_of(second.fail, DataError("line 3"), lambda: printed.append(1) or 3) == 3
    assert printed == [1]
    assert code_of(first.fail, DataError("line 3"), never) == 3
    # a rank that waits in a collective sees the cause as a lost connection
    assert code_of(third.fail, RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]"), never) == 3


def test_the_code_that_is_known_after_printing_replaces_the_first(make: Callable[..., Watch]) -> None:
    store = Store()
    code_of(make(store, 1).fail, ZeroDivisionError("in the user's loss"), lambda: 2)
    assert code_of(make(store, 0).fail, ValueError("other"), never) == 2


def test_a_request_to_stop_before_the_first_step_ends_all_with_75(make: Callable[..., Watch]) -> None:
    store = Store()
    assert code_of(make(store, 1).fail, Stopped("stopped"), lambda: 75) == 75
    assert make(store, 0)._exchange(0.0) == Failure(1, 75, "Stopped: stopped")


def test_a_lost_connection_without_a_cause_is_reported(
    make: Callable[..., Watch], capfd: pytest.CaptureFixture[str]
) -> None:
    assert code_of(make(Store(), 2).fail, RuntimeError("gloo: Connection reset by peer"), never) == 8
    assert "rank 2 of 3: the connection to another rank was lost" in capfd.readouterr().err


def test_an_error_of_this_rank_is_not_a_lost_connection() -> None:
    assert not is_lost_connection(DataError("closed by peer"))
    assert not is_lost_connection(RuntimeError("shape mismatch"))
    assert is_lost_connection(RuntimeError("Broken pipe"))


def test_a_rank_on_another_machine_that_sends_no_sign_of_life_has_failed(
    make: Callable[..., Watch], capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    own, other = make(store, 0), make(store, 1)
    other._machine = "node7 xyz"
    other._exchange(0.0)
    assert own._exchange(0.0) is None
    assert own._exchange(0.05) is None
    other._exchange(0.1)
    assert own._exchange(0.15) is None
    failure = own._exchange(0.3)
    assert failure is not None
    assert (failure.rank, failure.code) == (1, 8)
    assert capfd.readouterr().err.count("rank 1 on node7 has not responded") == 1


def test_a_rank_on_this_machine_that_is_gone_has_failed(make: Callable[..., Watch]) -> None:
    store = Store()
    own = make(store, 0)
    store.set("beat/1", f"{own._machine} 999999999 1.0")
    failure = own._exchange(0.0)
    assert failure is not None
    assert "the process of rank 1 is gone" in failure.what
    own = make(Store(), 0)
    own.finishing()  # then the others may have ended
    own._store.set("beat/1", f"{own._machine} 999999999 1.0")
    assert own._exchange(0.0) is None


def test_a_busy_rank_on_this_machine_is_not_mistaken_for_a_failure(make: Callable[..., Watch]) -> None:
    store = Store()
    own, other = make(store, 0), make(store, 1)
    other._exchange(0.0)
    assert all(own._exchange(now) is None for now in (0.0, 5.0, 50.0, 500.0))
