"""Formats that are functions of the user: what they return is checked like a row of a file."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import A, U

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.types import Judgement, PreferenceGroup

GROUP: dict[str, Any] = {"prompt": "p", "responses": ["x", "y"], "judgements": [{"better": 0, "worse": 1}]}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_user_function_reads_rows_and_its_failures_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def votes(row):\n"
        "    if row['q'] == 'bad': raise ValueError('no votes')\n"
        "    return PreferenceGroup(row['q'], tuple(row['a']), (Judgement(0, 1),))\n"
        "def wrong(row):\n"
        "    return [1]\n"
    )
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": ["1", "2"]}, {"q": "bad", "a": []}])
    groups, account = read_groups(str(path), Reading(format=f"{tmp_path / 'mine.py'}:votes", bad_rows="drop"))
    assert [(g.prompt, g.responses, g.origin) for g in groups] == [("x", ("1", "2"), f"{path}:1")]
    [(reason, origins)] = account.dropped.items()
    assert "no votes" in reason
    assert origins == [f"{path}:2"]
    with pytest.raises(DataError, match="returned a list with an item of type int; return a PreferenceGroup"):
        read_groups(str(path), Reading(format=f"{tmp_path / 'mine.py'}:wrong"))


FUNCTION = """
from preftune import Judgement, PreferenceGroup
from preftune.types import Message
def mine(row):
    if row["q"] == "good": return PreferenceGroup("p", ("a", "b"), (Judgement(0, 1),))
    return {}
"""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            "PreferenceGroup('p', ('a', 'b'), (Judgement(0, 5),))",
            "judgements[0] refers to a response that does not exist",
        ),
        (
            "PreferenceGroup('p', ('a', 'b'), (Judgement(-1, 0),))",
            "refers to a response that does not exist: [-1, 0] of 2",
        ),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, 'x'),))", "judgements[0].weight must be a number"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, -1.0),))", "judgements[0].weight must be at least 0"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, 1, 7),))", "judgements[0].probability must be between"),
        ("PreferenceGroup('p', ('a', 'b'), ((0, 1),))", "judgements[0] must be an object with better and worse"),
        ("PreferenceGroup('p', ('a', 'b'), 3)", "judgements must be a tuple of Judgement, not a number"),
        ("PreferenceGroup('p', ('a', 5), (Judgement(0, 1),))", "responses[1] must be text or a tuple of Message"),
        ("PreferenceGroup('p', ('a', {'role': 'user'}))", "responses[1] must be text or a tuple of Message, not an"),
        ("PreferenceGroup('p', 'ab')", "responses must be a tuple of texts, not text"),
        ("PreferenceGroup(None, ('a',))", "prompt must be text or a tuple of Message, not null"),
        ("PreferenceGroup((Message('robot', 'x'),), ('a',))", "prompt has a message with an unknown role"),
        (
            "PreferenceGroup((Message('user', 'x', (('name', 'Ann'),)),), ('a',))",
            "extra is not ((name, JSON text), ...)",
        ),
        ("PreferenceGroup((Message('user', 'x', {'name': 'Ann'}),), ('a',))", "extra is not ((name, JSON text), ...)"),
        ("PreferenceGroup('p\\ud800', ('a',))", "a lone surrogate"),
        ("PreferenceGroup('p', ('a', 'b'), labels=(1,))", "'labels' has 1 entries for 2 responses"),
        ("PreferenceGroup('p', ('a', 'b'), labels=(1, 2))", "labels[1] must be 1 or -1, not 2"),
        ("PreferenceGroup('p', ('a', 'b'), ranks=(1, 2, 3))", "'ranks' has 3 entries for 2 responses"),
        ("PreferenceGroup('p', ('a', 'b'), ended=(True,))", "'ended' must be a list of 2 values true or false"),
        ("'text'", "returned a value of type str; return a PreferenceGroup, a list of them, or None"),
        ("dict(prompt='p')", "returned a value of type dict; return"),
        ("{'p'}", "returned a set with an item of type str; return"),
        ("[None]", "returned a list with an item of type NoneType; return"),
        ("(1,)", "returned a tuple with an item of type int; return"),
        ("1 / 0", "mine.py:6: ZeroDivisionError: division by zero, raised in"),
        ("row['answers']", "mine.py:6: KeyError: 'answers'"),
        ("(_ for _ in [exit(0)])", "mine.py:6: SystemExit: 0"),
    ],
)
def test_a_wrong_return_value_of_a_user_function_is_an_error_or_dropped(
    tmp_path: Path, result: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION.format(result))
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "good"}, {"q": "bad"}])
    format = f"{tmp_path / 'mine.py'}:mine"
    with pytest.raises(DataError) as error:
        read_groups(str(path), Reading(format=format))
    assert "a.jsonl:2: " in str(error.value)
    assert "mine.py:mine" in str(error.value).splitlines()[0]
    assert message in str(error.value)
    assert "fix: repair the function or the row" in str(error.value)
    groups, account = read_groups(str(path), Reading(format=format, bad_rows="drop"))
    [(reason, origins)] = account.dropped.items()
    assert message in reason
    assert (len(groups), origins) == (1, [f"{path}:2"])


def test_a_user_function_may_return_lists_numpy_numbers_or_a_generator(tmp_path: Path) -> None:
    """The generator yields lists, numpy numbers and a mix of text and messages."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom preftune import Judgement, PreferenceGroup\nfrom preftune.types import Message\n"
        "def mine(row):\n"
        "    judgement = Judgement(np.argmax([0, 1]), np.int64(0), np.float32(2))\n"
        "    yield PreferenceGroup([Message('user', 'p')], ['a', 'b'], [judgement], ended=[True, False])\n"
        "    yield PreferenceGroup('p', ('a',))\n"
    )
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": 1}])
    [one, two], _ = read_groups(str(path), Reading(format=f"{tmp_path / 'mine.py'}:mine"))
    assert one == PreferenceGroup(
        (U("p"),), ((A("a"),), (A("b"),)), (Judgement(1, 0, 2.0),), ended=(True, False), origin=f"{path}:1"
    )
    assert two == PreferenceGroup("p", ("a",), origin=f"{path}:1")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([turn("assistant", "a"), turn("user", "b")], "the response does not end with an assistant turn"),
        ([turn("user", "b"), turn("assistant", "a")], "the response does not begin with an assistant turn"),
        ([turn("user", "b")], "the response does not begin with an assistant turn"),
    ],
)
def test_a_chat_response_must_begin_and_end_with_an_assistant_message(tmp_path: Path, second: Any, reason: str) -> None:
    """The rule applies to the format `groups` and to user functions."""
    good = {**GROUP, "prompt": [turn("user", "p")], "responses": [[turn("assistant", "x")], [turn("assistant", "y")]]}
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**good, "responses": [[turn("assistant", "x")], second]}])
    code = """
    from preftune import Judgement, Message, PreferenceGroup

    def mine(row):
        answers = [tuple(Message(m["role"], m["content"]) for m in response) for response in row["responses"]]
        return PreferenceGroup((Message("user", "p"),), tuple(answers), (Judgement(0, 1),))
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    for format in ("groups", f"{tmp_path / 'mine.py'}:mine"):
        groups, account = read_groups(str(path), Reading(format=format))
        assert len(groups) == 1
        assert account.dropped == {reason: [f"{path}:2"]}
