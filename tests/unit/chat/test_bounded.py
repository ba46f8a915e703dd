"""Templates that loop or allocate end at a limit, and later renderings are not affected."""

from __future__ import annotations

import resource
import sys
import threading
import time
from contextlib import suppress

import pytest
from tests.conftest import make_tokenizer

from preftune.chat import bounded as module
from preftune.chat.bounded import bounded
from preftune.chat.template import ChatSettings, Template
from preftune.errors import ModelError
from preftune.types import Message

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='abcdefgh') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
CHAT = [Message("user", "a")]


def rendered(source: str) -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = source
    return Template.of(tokenizer, ChatSettings()).render(CHAT, generation=False)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.3)
    monkeypatch.setattr(module, "CHECK_S", 0.05)
    monkeypatch.setattr(module, "BYTES", 200 * 2**20)


def test_a_template_that_loops_ends_at_the_time_limit() -> None:
    with pytest.raises(ModelError, match=r"ran for more than 0.3 s"):
        rendered(LOOP)
    assert rendered("{{ messages[0].content }}") == "a"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
@pytest.mark.parametrize("source", [DOUBLED, "{{ 'a' * 10 ** 9 }}", "{{ '%999999999d' % 1 }}"])
def test_a_template_that_allocates_ends_at_the_memory_limit(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 60)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ModelError, match="GB of memory"):
        rendered(source)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_late_signal_of_the_watcher_does_not_reach_what_follows() -> None:
    """The rendering ends just when its time is over."""
    for _ in range(10):
        with suppress(ModelError):
            bounded(lambda: time.sleep(0.3), "m")
        assert sum(range(1000)) == 499500


def test_each_thread_has_its_own_limit() -> None:
    errors: list[str] = []

    def loop() -> None:
        try:
            rendered(LOOP)
        except ModelError as error:
            errors.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    assert rendered("{{ messages[0].content }}") == "a"
    thread.join()
    assert len(errors) == 1


def test_a_nested_error_of_the_template_is_kept() -> None:
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, "m")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_the_last_of_two_renderings_at_once_restores_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 60)
    before = resource.getrlimit(resource.RLIMIT_AS)
    inside, first_ends = threading.Event(), threading.Event()
    second = threading.Thread(target=bounded, args=(lambda: (inside.set(), first_ends.wait(10)), "m"))

    def first() -> None:
        second.start()
        inside.wait(10)

    bounded(first, "m")
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    first_ends.set()
    second.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before
