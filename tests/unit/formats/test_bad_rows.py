"""A row that breaks its format is an error that names its line, or is dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import EXAMPLE_ROWS, chat, read_rows

from preftune.data.prompts import read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import BadRow

PAIR: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}


RANKED: dict[str, Any] = {"prompt": "p", "responses": ["x", "y"], "scores": [1, 2]}


GROUP: dict[str, Any] = {"prompt": "p", "responses": ["x", "y"], "judgements": [{"better": 0, "worse": 1}]}


def judged(**values: Any) -> dict[str, Any]:
    return {**GROUP, "judgements": [{"better": 0, "worse": 1, **values}]}


# format, a good row, a bad row, part of the message
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
    ("groups", GROUP, judged(better=[0]), "judgements[0] refers to a response that does not exist"),
    ("groups", GROUP, judged(better=True, worse=0), "judgements[0] refers to a response that does not exist"),
    ("groups", GROUP, judged(worse=0), "judgements[0] says that response 0 is better than itself"),
    ("groups", GROUP, judged(weight="x"), "judgements[0].weight must be a number, not 'x'"),
    ("groups", GROUP, judged(weight=-3), "judgements[0].weight must be at least 0, not -3"),
    ("groups", GROUP, judged(weight=0), "judgements[0].weight must be above 0"),
    ("groups", GROUP, judged(probability=7), "judgements[0].probability must be between 0 and 1, not 7"),
    ("groups", GROUP, judged(margin=float("nan")), "judgements[0].margin must be a finite number"),
    ("groups", GROUP, {**GROUP, "responses": [3, "y"]}, "'responses[0]' must be a list of messages, not a number"),
    ("preference", PAIR, {**PAIR, "weight": "x"}, "'weight' must be a number, not 'x'"),
    ("preference", PAIR, {**PAIR, "weight": -3}, "'weight' must be at least 0, not -3"),
    ("preference", PAIR, {**PAIR, "weight": float("inf")}, "'weight' must be a finite number"),
    ("preference", PAIR, {**PAIR, "weight": True}, "'weight' must be a finite number, not True"),
    ("preference", PAIR, {**PAIR, "probability": -0.1}, "'probability' must be between 0 and 1"),
    ("preference", PAIR, {**PAIR, "probability": float("nan")}, "'probability' must be a finite number"),
    ("preference", PAIR, {**PAIR, "margin": 10**400}, "'margin' must be a finite number"),
    ("preference", PAIR, {**PAIR, "margin": 1e39}, "'margin' must be a finite number"),  # not in fp32
]


@pytest.mark.parametrize(("name", "good", "bad", "message"), BAD)
def test_a_bad_row_is_an_error_with_its_line_or_dropped(
    tmp_path: Path, name: str, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    """The bad row comes after the rows from which the format is detected."""
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


# format, row, part of the message
BROKEN = [
    ("preference", {"prompt": "p", "chosen": "a", "rejecetd": "b"}, "'rejected' is missing; did you mean 'rejecetd'"),
    ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is null"),
    ("preference", {"prompt": "p", "chosen": 3, "rejected": "b"}, "'chosen' must be text, not a number"),
    ("preference", {"prompt": "p", "chosen": ["a"], "rejected": "b"}, "'chosen' must be text, not a list"),
    ("preference", {"prompt": "p", "chosen": "a\ud800", "rejected": "b"}, "a lone surrogate at character 1"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' must be a number"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 2}, "between 0 and 1"),
    (
        "ultrafeedback",
        EXAMPLE_ROWS["ultrafeedback"] | {"score_rejected": 9.0},
        "rejected response has the higher score",
    ),
    (
        "chat",
        {"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"},
        r"prompt\[0\] has the unknown role 'robot'",
    ),
    ("chat", {"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "must be text, not null"),
    (
        "chat",
        {"prompt": chat(("user", "x")), "chosen": {"role": "assistant"}, "rejected": "b"},
        "must be text, not null",
    ),
    (
        "chat",
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
        r"prompt\[0\].content\[0\] has content that is not text: 'image'",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "look it up"}], "chosen": "a", "rejected": "b"},
        r"conversations\[0\] has the role 'function_call', but its text is not JSON",
    ),
    (
        "chat",
        {"messages": chat(("user", "x"), ("assistant", "y")), "chosen": "a", "rejected": "b"},
        "'messages' ends with an assistant turn that is not the chosen response",
    ),
    ("preference", {"prompt": "p", "system": ["s"], "chosen": "a", "rejected": "b"}, "'system' must be text"),
    ("preference", {"prompt": "p", "history": ["q"], "chosen": "a", "rejected": "b"}, "'history' must be a list of"),
    (
        "preference",
        {"prompt": "p", "input": ["q"], "chosen": "a", "rejected": "b"},
        "'input', which is appended to 'prompt', must be",
    ),
    (
        "chat-implicit",
        {"chosen": chat(("assistant", "a")), "rejected": chat(("assistant", "b"))},
        "the row has no prompt",
    ),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "middle"}, "not 'middle'"),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": None}, "'winner' is null"),
    ("summaries", {"info": {"post": "p"}, "summaries": [{"text": "x"}], "choice": 0}, "a list of two"),
    ("last-turn", {"messages": chat(("user", "x")), "rejected_response": "b"}, "must end with the assistant turn"),
    (
        "ranked",
        {"prompt": "p", "answers": [{"text": "x", "reasoning": "r", "rank": 1}, {"text": "y", "rank": 2}]},
        "only one field can be the response",
    ),
    ("openai", {"input": {"messages": chat(("user", "x")), "functions": [1]}, "preferred_output": []}, "'functions'"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"]}, "they cannot be compared"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1]}, "'scores' has 1 entries for 2 responses"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, None]}, r"scores\[1\] is null"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, 2], "ended": [True]}, "list of 2 values"),
    ("unpaired", {"prompt": "p", "completion": "c", "label": "perhaps"}, "true or false, not 'perhaps'"),
    ("groups", {"prompt": "p", "responses": ["x"], "judgements": [{"better": 0, "worse": 1}]}, "does not exist"),
    ("groups", {"prompt": "p", "responses": ["x"], "judgements": [{"bettr": 0}]}, "an object with better and worse"),
    ("openai", {"input": "hi", "preferred_output": [], "non_preferred_output": []}, "'input' must be an object"),
]


@pytest.mark.parametrize(("name", "row", "message"), BROKEN)
def test_a_row_that_breaks_its_format_is_a_bad_row(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        list(BY_NAME[name].parse(row, Reading()))


def test_the_error_for_a_broken_line_has_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n"
    path.write_text(line * 5000 + '{"prompt": \n' + line)
    with pytest.raises(DataError, match=r"a.jsonl:5001: broken JSON"):
        read_groups(str(path))


def test_a_single_ranked_row_without_responses_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "scores": [1, 2]}])
    with pytest.raises(DataError, match=r"a.jsonl:1: the row has no column with a list of responses"):
        read_groups(str(path), Reading(format="ranked"))


def test_a_bad_prompt_is_an_error_or_dropped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}])
    with pytest.raises(DataError, match="'prompt' is null") as error:
        read_prompts(str(path))
    assert error.value.where == f"{path}:2"
    groups, account = read_prompts(str(path), Reading(bad_rows="drop"))
    assert [group.prompt for group in groups] == ["a", "b"]
    assert account.dropped == {"cannot be read: column 'prompt' is null": [f"{path}:2"]}


@pytest.mark.parametrize(
    ("name", "with_margin", "without"),
    [
        ("preference", {**PAIR, "margin": 0.5}, PAIR),
        ("preference", {**PAIR, "margin": 0.0}, {**PAIR, "margin": None}),
        ("preference", {**PAIR, "margin": "2"}, {**PAIR, "margin": ""}),
        ("groups", judged(margin=0.5), GROUP),
    ],
)
def test_rows_without_margin_are_bad_if_other_rows_have_one(
    tmp_path: Path, name: str, with_margin: dict[str, Any], without: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [without, with_margin, without, with_margin])
    with pytest.raises(DataError, match=r"a.jsonl:1: the row has no margin, but other rows have one \(.*a.jsonl:2\)"):
        read_groups(str(path))
    groups, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert [g.origin for g in groups] == [f"{path}:2", f"{path}:4"]
    assert account.dropped == {"the row has no margin, but other rows have one": [f"{path}:1", f"{path}:3"]}
    assert account.format == name
    for all_alike in (with_margin, without):
        assert len(read_groups(str(write_jsonl(path, [all_alike] * 3)))[0]) == 3


def test_all_judgements_of_a_row_have_a_margin_or_none_has(tmp_path: Path) -> None:
    judgements = [{"better": 0, "worse": 1, "margin": 1.0}, {"better": 0, "worse": 2}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["x", "y", "z"], "judgements": judgements}])
    with pytest.raises(
        DataError, match=r"a.jsonl:1: judgements\[1\] has no margin, but other judgements of the row have one"
    ):
        read_groups(str(path))


def test_a_margin_column_in_ranked_data_is_not_used(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**RANKED, "margin": 1.0}, RANKED])
    assert len(read_groups(str(path))[0]) == 2


@pytest.mark.parametrize(("bad", "offered"), [(1, "data.max_dropped=0.25"), (2, "data.max_dropped=0.5"), (3, "")])
def test_the_fix_accepts_dropped_rows_only_if_they_are_a_minority(tmp_path: Path, bad: int, offered: str) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b" if number >= bad else "a"} for number in range(4)]
    _, account = read_rows(tmp_path, rows)
    with pytest.raises(DataError, match="rows were dropped") as caught:
        account.check(0.0)
    assert offered in caught.value.fix
    assert ("max_dropped" in caught.value.fix) == bool(offered)
