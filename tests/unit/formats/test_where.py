"""Rows are selected by the conditions of data.where. Other rows are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_jsonl

from preftune.data.prompts import read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError
from preftune.formats.account import require_matched
from preftune.formats.parsers import Reading
from preftune.formats.where import OPERATORS, conditions, drop_list

PAIR = {"prompt": "p", "chosen": "x", "rejected": "y"}


def holds(text: str, row: dict[str, Any]) -> bool:
    [condition] = conditions([text])
    return condition.holds(row)


@given(
    st.sampled_from(sorted(OPERATORS)),
    st.one_of(st.integers(-5, 5), st.floats(-5, 5)),
    st.one_of(st.integers(-5, 5), st.floats(-5, 5)),
    st.booleans(),
)
def test_numbers_are_compared_as_numbers(sign: str, left: float, right: float, as_text: bool) -> None:
    cell = str(left) if as_text else left
    assert holds(f"x {sign} {right}", {"x": cell}) == OPERATORS[sign](left, right)


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("source == evol", {"source": "evol"}, True),
        ('source == "evol"', {"source": "evol"}, True),
        ("source != evol", {"source": "evol"}, False),
        ("source = evol", {"source": "Evol"}, False),
        ("the source==a b", {"the source": "a b"}, True),
        ("info.split == valid", {"info": {"split": "valid"}}, True),
        ("info.split == valid", {"info.split": "valid"}, True),
        ("safe == true", {"safe": True}, True),
        ("safe == true", {"safe": "False"}, False),
        ("safe == false", {"safe": 0}, True),
        ("score >= 2", {"score": None}, False),
        ("score != 2", {"score": None}, True),
        ("score == null", {"score": None}, True),
        ("score == null", {"score": 3}, False),
        ("score != null", {"score": 3}, True),
        ("score != null", {}, False),
        ("score > null", {"score": 3}, None),
        ("split == 1", {"split": "1.0"}, True),
        ('x == "=="', {"x": "=="}, True),
        ("id == 9007199254740993", {"id": 9007199254740992}, False),
        ("id > 9007199254740992", {"id": "9007199254740993"}, True),
        ("id != 9007199254740993", {"id": "9007199254740992"}, True),
        ("score >= 2", {"score": ""}, False),
        ("score < 2", {"score": float("nan")}, False),
        ("score >= 2", {"score": "NaN"}, False),
        ("score != 2", {"score": " "}, True),
        ("score == null", {"score": ""}, True),
        ("score == null", {"score": float("nan")}, True),
        ('system == ""', {"system": None}, True),
        ('system != ""', {"system": ""}, False),
        ("score != NaN", {"score": 2.5}, True),
        ("safe == 1", {"safe": True}, True),
        ("safe != 1", {"safe": False}, True),
    ],
)
def test_conditions(text: str, row: dict[str, Any], expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="use == or != for texts"):
            conditions([text])
    else:
        assert holds(text, row) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("score", "score >=", ">= 2", "x == [1]", "x > abc", "x < true"),
        *("x !== 2", "x => 2", "x =< 2", "x <> 2", "x === 2", "x == =="),
    ],
)
def test_a_condition_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.where: "):
        conditions([text])


def test_rows_are_left_out_with_a_count(tmp_path: Path) -> None:
    rows = [{**PAIR, "score_ratio": ratio} for ratio in (1.0, 2.0, 3.5, 1.5)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    groups, account = read_groups(path, Reading(where=("score_ratio >= 2",)))
    assert [group.origin for group in groups] == [f"{path}:2", f"{path}:3"]
    assert (account.read, account.kept) == (4, 2)
    assert dict(account.dropped) == {"left out by data.where: not score_ratio >= 2": [f"{path}:1", f"{path}:4"]}
    account.check(0.0)


def test_prompts_are_selected_too(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "level": 1}, {"prompt": "b", "level": 2}]))
    groups, account = read_prompts(path, Reading(where=("level >= 2",)))
    assert [group.prompt for group in groups] == ["b"]
    assert (account.read, account.kept) == (2, 1)
    with pytest.raises(DataError, match="'size', which no row has"):
        read_prompts(path, Reading(where=("size >= 2",)))


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "score_ratio": 2}]))
    with pytest.raises(DataError, match=r"(?s)'score_ration', which no row has.*did you mean 'score_ratio'"):
        read_groups(path, Reading(where=("score_ration >= 2",)))


def test_a_text_without_order_is_an_error_with_its_row(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "level": "hard"}]))
    with pytest.raises(DataError, match=r"a.jsonl:1: 'level > 2'"):
        read_groups(path, Reading(where=("level > 2",)))


def test_true_and_false_have_no_order(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "is_safe": True}]))
    with pytest.raises(DataError, match=r"a.jsonl:1: 'is_safe >= 1': 'is_safe' is true/false True"):
        read_groups(path, Reading(where=("is_safe >= 1",)))


def test_a_row_that_cannot_be_read_is_not_left_out_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAIR | {"n": 1}) + "\n{broken\n")
    with pytest.raises(DataError, match=r"a.jsonl:2: broken JSON"):
        read_groups(str(path), Reading(where=("n == 1",)))


def three_rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "d.jsonl", [{**PAIR, "chosen": f"x{i}"} for i in range(3)])


def test_listed_rows_are_left_out_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = three_rows(tmp_path)
    listed = tmp_path / "drop.txt"
    monkeypatch.chdir(tmp_path)
    for name in (str(data), "d.jsonl"):  # a relative path names the same row
        listed.write_text(f"{name}:2\n\n")
        groups, account = read_groups(str(data), Reading(drop=drop_list(str(listed))))
        assert [group.responses[0] for group in groups] == ["x0", "x2"]
        assert account.read == 3
        account.check(0.0)  # the row does not count as a dropped one
        assert any("left out by data.drop" in line for line in account.lines())


def test_a_listed_row_that_no_source_has_is_an_error(tmp_path: Path) -> None:
    data, other = three_rows(tmp_path), write_jsonl(tmp_path / "e.jsonl", [PAIR])
    listed = (f"{data}:3", f"{other}:1")
    accounts = [read_groups(str(path), Reading(drop=listed))[1] for path in (data, other)]
    require_matched(accounts)
    with pytest.raises(DataError, match=r"data.drop lists the row .*e.jsonl:1"):
        require_matched(accounts[:1])


@pytest.mark.parametrize(("text", "message"), [("", "lists no rows"), ("just words\n", "does not name a row")])
def test_a_list_that_names_no_rows_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "drop.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        drop_list(str(tmp_path / "drop.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        drop_list(str(tmp_path / "none.txt"))
