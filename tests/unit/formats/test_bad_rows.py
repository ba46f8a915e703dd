"""Rows that break their format, of files and of user functions: each is named with its line, or dropped and counted."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.test_formats import ROWS, A, U, chat

from preftune.data.convert import as_groups
from preftune.data.groups import hold_out, read_groups
from preftune.data.prompts import read_prompts
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.formats.table import BY_NAME
from preftune.formats.values import BadRow, Drop, without_empty
from preftune.types import Judgement, PreferenceGroup

PAIR: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKED: dict[str, Any] = {"prompt": "p", "responses": ["x", "y"], "scores": [1, 2]}
GROUP: dict[str, Any] = {"prompt": "p", "responses": ["x", "y"], "judgements": [{"better": 0, "worse": 1}]}


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def judged(**values: Any) -> dict[str, Any]:
    return {**GROUP, "judgements": [{"better": 0, "worse": 1, **values}]}


# format, a good row, the bad one, what is said of it
BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("ranked", RANKED, {"prompt": "p", "scores": [1, 2]}, "no column with a list of responses (responses, completions"),
    ("ranked", RANKED, {"prompt": "p", "respones": ["x"]}, "did you mean 'respones'?"),
    ("ranked", RANKED, {**RANKED, "responses": None}, "'responses' is null"),
    ("ranked", RANKED, {**RANKED, "scores": [1, ""]}, "scores[1] is empty"),
    ("ranked", RANKED, {**RANKED, "scores": [1, "high"]}, "scores[1] must be a number, not 'high'"),
    ("groups", GROUP, {**GROUP, "labels": ["a", "b"]}, "labels[0] must be 1 or -1, not 'a'"),
    ("groups", GROUP, {**GROUP, "labels": [True, False]}, "labels[0] must be 1 or -1, not True"),
    ("groups", GROUP, {**GROUP, "labels": 5}, "'labels' must be a list, not a number"),
    ("groups", GROUP, {**GROUP, "labels": [1]}, "'labels' has 1 entries for 2 responses"),
    ("groups", GROUP, {**GROUP, "ranks": ["first", "second"]}, "ranks[0] must be a number, not 'first'"),
    ("groups", GROUP, {**GROUP, "ranks": [1, None]}, "ranks[1] is null"),
    ("groups", GROUP, {**GROUP, "judgements": 3}, "'judgements' must be a list, not a number"),
    ("groups", GROUP, {**GROUP, "judgements": None}, "'judgements' is null"),
    ("groups", GROUP, {**GROUP, "judgements": ["0>1"]}, "judgements[0] must be an object with better and worse"),
    ("groups", GROUP, judged(better=[0]), "judgements[0] names a response that does not exist"),
    ("groups", GROUP, judged(better=True, worse=0), "judgements[0] names a response that does not exist"),
    ("groups", GROUP, judged(worse=0), "judgements[0] calls response 0 better than itself"),
    ("groups", GROUP, judged(weight="x"), "judgements[0].weight must be a number, not 'x'"),
    ("groups", GROUP, judged(weight=-3), "judgements[0].weight must not be below 0, got -3"),
    ("groups", GROUP, judged(weight=0), "judgements[0].weight must be above 0"),
    ("groups", GROUP, judged(probability=7), "judgements[0].probability must lie between 0 and 1, not 7"),
    ("groups", GROUP, judged(margin=float("nan")), "judgements[0].margin must be a finite number"),
    ("groups", GROUP, {**GROUP, "responses": [3, "y"]}, "'responses[0]' must be a list of messages, not a number"),
    ("preference", PAIR, {**PAIR, "weight": "x"}, "'weight' must be a number, not 'x'"),
    ("preference", PAIR, {**PAIR, "weight": -3}, "'weight' must not be below 0, got -3"),
    ("preference", PAIR, {**PAIR, "weight": float("inf")}, "'weight' must be a finite number"),
    ("preference", PAIR, {**PAIR, "weight": True}, "'weight' must be a finite number, not True"),
    ("preference", PAIR, {**PAIR, "probability": -0.1}, "'probability' must lie between 0 and 1"),
    ("preference", PAIR, {**PAIR, "probability": float("nan")}, "'probability' must be a finite number"),
    ("preference", PAIR, {**PAIR, "margin": 10**400}, "'margin' must be a finite number"),
    ("preference", PAIR, {**PAIR, "margin": 1e39}, "'margin' must be a finite number"),  # not in fp32
]


@pytest.mark.parametrize(("name", "good", "bad", "message"), BAD)
def test_a_bad_row_is_named_or_dropped(
    tmp_path: Path, name: str, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    """Also where it comes after the rows that the format was found from."""
    path = write_jsonl(tmp_path / "a.jsonl", [good] * 25 + [bad])
    with pytest.raises(DataError) as error:
        read_groups(str(path))
    assert "a.jsonl:26: " in str(error.value)
    assert message in str(error.value)
    assert "fix:" in str(error.value)
    groups, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert (len(groups), account.format, account.kept) == (25, name, 25)
    [(reason, origins)] = account.dropped.items()
    assert reason.startswith("cannot be read: ")
    assert message in reason
    assert origins == [f"{path}:26"]


def test_a_ranking_without_its_list_is_named_in_a_file_of_one_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "scores": [1, 2]}])
    with pytest.raises(DataError, match=r"a.jsonl:1: no column with a list of responses"):
        read_groups(str(path), Reading(format="ranked"))


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, float("inf"), float("nan"), 10**400, "", " ", "x", "a\ud800", [], [[]], ["a", "b"]),
    *({}, {"a": 1}, [1, 2], {"messages": []}, {"role": "assistant", "content": [{"text": 3}]}),
    *(chat(("user", "hi")), [{"role": ["x"], "content": "y"}], [{"from": None, "value": None}]),
    *([{"better": 0, "worse": 1, "margin": None}], [{"better": True, "worse": {}}]),
]
COLUMNS = ("margin", "weight", "probability", "ended", "labels", "ranks", "scores", "score_chosen", "system", "label")


def spoilt(value: Any, chance: random.Random) -> Any:
    """`value` with something else at one place of it."""
    if isinstance(value, dict) and value and chance.random() < 0.7:
        key = chance.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if chance.random() < 0.2 else {**rest, key: spoilt(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], spoilt(value[place], chance), *value[place + 1 :]]
    return chance.choice(VALUES)


@pytest.mark.parametrize("seed", range(len(ROWS)), ids=[f"{i}-{row[0]}" for i, row in enumerate(ROWS)])
def test_no_row_breaks_a_parser(seed: int) -> None:
    """Whatever a row holds, it becomes groups that can be written as JSON, a bad row, or one with nothing in it."""
    name, row, _ = ROWS[seed]
    chance, kinds = random.Random(seed), set()
    for _ in range(500):
        bad = {key: spoilt(value, chance) if chance.random() < 0.4 else value for key, value in row.items()}
        bad |= {key: chance.choice(VALUES) for key in COLUMNS if chance.random() < 0.05}
        reading = Reading(
            pairs=chance.choice(["all", "best-worst", "adjacent"]), margin_from_scores=chance.random() < 0.2
        )
        try:
            groups = [without_empty(group) for group in BY_NAME[name].parse(bad, reading)]
            for written in as_groups(groups):
                json.dumps(written, allow_nan=False, ensure_ascii=False).encode()
            kinds.add("kept")
        except (BadRow, Drop) as reason:
            kinds.add(type(reason).__name__)
    assert {"kept", "BadRow"} <= kinds


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
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 5),))", "judgements[0] names a response that does not exist"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(-1, 0),))", "names a response that does not exist: [-1, 0] of 2"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, 'x'),))", "judgements[0].weight must be a number"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, -1.0),))", "judgements[0].weight must not be below 0"),
        ("PreferenceGroup('p', ('a', 'b'), (Judgement(0, 1, 1, 7),))", "judgements[0].probability must lie between"),
        ("PreferenceGroup('p', ('a', 'b'), ((0, 1),))", "judgements[0] must be an object with better and worse"),
        ("PreferenceGroup('p', ('a', 'b'), 3)", "judgements must be a tuple of Judgement, not a number"),
        ("PreferenceGroup('p', ('a', 5), (Judgement(0, 1),))", "responses[1] must be text or a tuple of Message"),
        ("PreferenceGroup('p', ('a', {'role': 'user'}))", "responses[1] must be text or a tuple of Message, not an"),
        ("PreferenceGroup('p', 'ab')", "responses must be a tuple of texts, not text"),
        ("PreferenceGroup(None, ('a',))", "prompt must be text or a tuple of Message, not null"),
        ("PreferenceGroup((Message('robot', 'x'),), ('a',))", "prompt has a message of unknown role"),
        (
            "PreferenceGroup((Message('user', 'x', (('name', 'Ann'),)),), ('a',))",
            "extra is not ((name, JSON text), ...)",
        ),
        ("PreferenceGroup((Message('user', 'x', {'name': 'Ann'}),), ('a',))", "extra is not ((name, JSON text), ...)"),
        ("PreferenceGroup('p\\ud800', ('a',))", "half a surrogate pair"),
        ("PreferenceGroup('p', ('a', 'b'), labels=(1,))", "'labels' has 1 entries for 2 responses"),
        ("PreferenceGroup('p', ('a', 'b'), labels=(1, 2))", "labels[1] must be 1 or -1, not 2"),
        ("PreferenceGroup('p', ('a', 'b'), ranks=(1, 2, 3))", "'ranks' has 3 entries for 2 responses"),
        ("PreferenceGroup('p', ('a', 'b'), ended=(True,))", "'ended' must be a list of 2 times true or false"),
        ("'text'", "returned a str; return a PreferenceGroup, a list of them, or None"),
        ("dict(prompt='p')", "returned a dict; return"),
        ("{'p'}", "returned a set that holds a str; return"),
        ("[None]", "returned a list that holds None; return"),
        ("(1,)", "returned a tuple that holds a int; return"),
        ("1 / 0", "mine.py:6: ZeroDivisionError: division by zero, raised in"),
        ("row['answers']", "mine.py:6: KeyError: 'answers'"),
        ("(_ for _ in [exit(0)])", "mine.py:6: SystemExit: 0"),
    ],
)
def test_what_a_function_of_the_users_returns_is_checked(tmp_path: Path, result: str, message: str) -> None:
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


def test_prompts_that_cannot_be_read_are_named_or_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}])
    with pytest.raises(DataError, match="'prompt' is null") as error:
        read_prompts(str(path))
    assert error.value.where == f"{path}:2"
    groups, account = read_prompts(str(path), Reading(bad_rows="drop"))
    assert [group.prompt for group in groups] == ["a", "b"]
    assert account.dropped == {"cannot be read: column 'prompt' is null": [f"{path}:2"]}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([said("assistant", "a"), said("user", "b")], "several turns after the prompt"),
        ([said("assistant", "a"), said("assistant", "b")], "several turns after the prompt"),
        ([said("user", "b")], "response is not by the assistant"),
    ],
)
def test_a_response_is_one_message_of_the_assistant(tmp_path: Path, second: Any, reason: str) -> None:
    """In the groups format and in what a user's function returns, as in all other formats."""
    good = {**GROUP, "prompt": [said("user", "p")], "responses": [[said("assistant", "x")], [said("assistant", "y")]]}
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**good, "responses": [[said("assistant", "x")], second]}])
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


def test_what_a_function_of_the_users_may_return(tmp_path: Path) -> None:
    """Lists, numbers of numpy, text beside messages, a generator."""
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
    ("name", "with_margin", "without"),
    [
        ("preference", {**PAIR, "margin": 0.5}, PAIR),
        ("preference", {**PAIR, "margin": 0.0}, {**PAIR, "margin": None}),
        ("preference", {**PAIR, "margin": "2"}, {**PAIR, "margin": ""}),
        ("groups", judged(margin=0.5), GROUP),
    ],
)
def test_a_margin_in_some_rows_only_is_a_fault_of_the_others(
    tmp_path: Path, name: str, with_margin: dict[str, Any], without: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [without, with_margin, without, with_margin])
    with pytest.raises(DataError, match=r"a.jsonl:1: no margin, but other rows have one \(.*a.jsonl:2\)"):
        read_groups(str(path))
    groups, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert [g.origin for g in groups] == [f"{path}:2", f"{path}:4"]
    assert account.dropped == {"no margin, but other rows have one": [f"{path}:1", f"{path}:3"]}
    assert account.format == name
    for all_alike in (with_margin, without):
        assert len(read_groups(str(write_jsonl(path, [all_alike] * 3)))[0]) == 3


def test_margins_within_a_group_are_there_for_all_or_none(tmp_path: Path) -> None:
    judgements = [{"better": 0, "worse": 1, "margin": 1.0}, {"better": 0, "worse": 2}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["x", "y", "z"], "judgements": judgements}])
    with pytest.raises(DataError, match=r"a.jsonl:1: judgements\[1\] has no margin, but others of the row have one"):
        read_groups(str(path))


def test_a_column_margin_beside_a_ranking_means_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**RANKED, "margin": 1.0}, RANKED])
    assert len(read_groups(str(path))[0]) == 2


def test_one_empty_response_of_several_is_left_out_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "responses": ["x", " \n", "z"], "scores": [3, 2, 1], "ended": [True, False, True]},
        {"prompt": "p", "responses": ["x", "y", "z"], "scores": [3, 2, 1]},
        {"prompt": "p", "responses": ["x", "", ""], "scores": [3, 2, 1]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    [cut, _], account = read_groups(str(path))
    assert cut == PreferenceGroup(
        "p", ("x", "z"), (Judgement(0, 1),), ranks=(1.0, 3.0), ended=(True, True), origin=f"{path}:1"
    )
    assert account.dropped == {"empty response": [f"{path}:3"]}
    assert account.noted == {"an empty response was left out, with its judgements": [f"{path}:1"]}
    assert account.kept == 2


def test_the_worst_of_a_ranking_is_the_worst_that_is_not_empty(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["", "y", "z"], "scores": [1, 2, 3]}])
    [group], _ = read_groups(str(path), Reading(pairs="best-worst"))
    assert (group.responses, group.judgements) == (("y", "z"), (Judgement(1, 0),))


def test_empty_responses_of_the_groups_format(tmp_path: Path) -> None:
    both = [{"better": 2, "worse": 0}, {"better": 1, "worse": 2}]
    rows = [
        {"prompt": "p", "responses": ["x", "", "z"], "judgements": both, "labels": [1, 1, -1], "ranks": [3, 1, 2]},
        {"prompt": "p", "responses": ["x", "", "z"], "judgements": both[1:]},  # its only judgement goes
        {"prompt": "p", "responses": ["x", ""], "judgements": [{"better": 0, "worse": 1}]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    [group], account = read_groups(str(path))
    assert group == PreferenceGroup(
        "p", ("x", "z"), (Judgement(1, 0),), labels=(1, -1), ranks=(3.0, 2.0), origin=f"{path}:1"
    )
    assert account.dropped == {"empty response": [f"{path}:2", f"{path}:3"]}


def dialogue(*words: str, origin: str) -> list[PreferenceGroup]:
    """The groups of a demonstration of several turns."""
    turns = [make(word) for word in words for make in (U, A)]
    return [PreferenceGroup(tuple(turns[:i]), ((turns[i],),), origin=origin) for i in range(1, len(turns), 2)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8])
def test_hold_out_by_row_and_by_prompt(share: float) -> None:
    """Rows of one to four turns, some with the same beginning."""
    groups = [
        group
        for i in range(60)
        for group in dialogue(f"hello {i // 2}", *(f"{i} {turn}" for turn in range(i % 4)), origin=f"f:{i}")
    ]
    train, held = hold_out(groups, share)
    assert {g.origin for g in train}.isdisjoint(g.origin for g in held)
    assert {g.prompt for g in train}.isdisjoint(g.prompt for g in held)
    assert len(train) + len(held) == len(groups)
    prompts = len({g.prompt for g in groups})
    assert abs(len({g.prompt for g in held}) - share * prompts) <= 7  # a family has at most 7 prompts
    assert hold_out(groups[::-1], share)[1] == held[::-1]


def test_rows_that_all_hang_together_cannot_be_held_out() -> None:
    groups = dialogue("hello", "a", origin="f:1") + dialogue("hello", "b", origin="f:2")
    with pytest.raises(DataError, match="prompts that share a row stay together"):
        hold_out(groups, 0.5)
    with pytest.raises(DataError, match="cannot hold out"):
        hold_out([], 0.5)


def test_what_is_ignored_is_ignored_in_judgements_too(tmp_path: Path) -> None:
    """The fix that a loss without soft labels suggests works on groups as it does on pairs."""
    judgement = {"better": 0, "worse": 1, "probability": 0.8}
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["x", "y"], "judgements": [judgement]}])
    (group,), _ = read_groups(str(path), Reading(ignore=("probability",)))
    assert group.judgements[0].probability == 1.0
    assert read_groups(str(path))[0][0].judgements[0].probability == 0.8


def test_many_reasons_are_told_in_few_lines(tmp_path: Path) -> None:
    """The most frequent ones; the others are counted together, and nothing is lost from the account itself."""
    rows = [*({"prompt": 1}, {"prompt": 2}), *({**PAIR, "probability": f"x{i}"} for i in range(30)), PAIR]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    _, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert (account.kept, len(account.dropped)) == (1, 31)
    first, columns, *dropped = account.lines()
    assert first.endswith("1 kept")
    assert columns == "  columns used: prompt, chosen, rejected; in dropped rows only: probability"
    assert len(dropped) == 13
    assert dropped[0].endswith("dropped 2 (lines 1, 2): cannot be read: column 'prompt' must be text, not a number")
    assert dropped[-1].endswith("19 other reasons")
    assert "dropped 19 (line" in dropped[-1]
