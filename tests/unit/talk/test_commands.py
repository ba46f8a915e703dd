"""Lines that a user types, and settings that they change."""

from __future__ import annotations

import pytest

from preftune.errors import ConfigError
from preftune.model.generate import Sampling
from preftune.talk.commands import COMMANDS, Command, help_text, inputs, parse
from preftune.talk.run import completer
from preftune.talk.settings import change, described


def test_a_line_is_a_message_or_a_command() -> None:
    assert parse("hello /quit") == "hello /quit"
    assert parse("/set temperature 0.7 ") == Command("/set", "temperature 0.7")
    assert parse("/exit") == Command("/quit", "")
    assert parse("//etc/hosts has this") == "/etc/hosts has this"


@pytest.mark.parametrize(("line", "hint"), [("/bettr left", "/better"), ("/usr/bin", "//")])
def test_an_unknown_command_is_an_error_with_a_hint(line: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse(line)


def test_triple_quotes_make_one_message_of_several_lines() -> None:
    lines = ["first", "", '"""two', "", "  lines", '"""', '"""one line"""', '"""', "last", 'end"""', '"""', '"""']
    assert list(inputs(iter(lines))) == ["first", "two\n\n  lines", "one line", "last\nend"]


def test_quotes_that_are_not_closed_are_an_error() -> None:
    with pytest.raises(ConfigError, match="does not end"):
        list(inputs(iter(['"""a', "b"])))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("temperature 0", "temperature", 0.0),
        ("top_p=0.9", "top_p", 0.9),
        ("top-k 40", "top_k", 40),
        ("max_new_tokens 5", "max_new_tokens", 5),
        ("max_tokens = 7", "max_new_tokens", 7),
        ("seed 3", "seed", 3),
    ],
)
def test_set_changes_one_setting(text: str, name: str, value: float) -> None:
    changed = change(Sampling(), text)
    assert getattr(changed, name) == value
    assert str(value) in described(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature", "'' is not a number from 0 on"),
        ("temperature warm", "'warm' is not a number"),
        ("temperature -1", "-1"),
        ("temperature nan", "nan"),
        ("temperature inf", "inf"),
        ("top_p 0", "above 0"),
        ("top_p 1.1", "above 0"),
        ("top_k 1.5", "whole number"),
        ("max_tokens 0", "whole number from 1"),
        ("seed -1", "whole number"),
        ("temprature 1", "did you mean 'temperature'"),
    ],
)
def test_an_invalid_setting_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change(Sampling(), text)


def test_help_lists_every_command_and_tab_completes_them() -> None:
    assert all(name in help_text() for name in COMMANDS)
    complete = completer(list(COMMANDS))
    assert [complete("/be", 0), complete("/be", 1)] == ["/better ", None]
    assert complete("be", 0) is None
