"""Two responses and a verdict: a column, one of three columns, or a score for each response."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading

AB = {"prompt": "p", "response_a": "x", "response_b": "y"}
NUMBERED = {"question": "p", "answer_0": "x", "answer_1": "y"}


def better(folder: Path, rows: list[dict[str, Any]], **reading: Any) -> list[str]:
    groups, _ = read_groups(str(write_jsonl(folder / "rows.jsonl", rows)), Reading(**reading))
    return [str(group.responses[group.judgements[0].better]) for group in groups]


@pytest.mark.parametrize(("first", "second", "words"), [(1, 0, "x"), (0, 1, "y")])
def test_one_of_three_columns_is_marked(tmp_path: Path, first: int, second: int, words: str) -> None:
    row = {**AB, "winner_model_a": first, "winner_model_b": second, "winner_tie": 0}
    assert better(tmp_path, [row]) == [words]


def test_a_tie_is_dropped_and_two_marks_are_refused(tmp_path: Path) -> None:
    row = {**AB, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    assert better(tmp_path, [row]) == []
    with pytest.raises(DataError, match="exactly one of the columns winner_model_a, winner_model_b, winner_tie"):
        better(tmp_path, [row | {"winner_model_a": 1}])


def test_a_score_for_each_response_is_a_verdict(tmp_path: Path) -> None:
    rows = [{**NUMBERED, "score_0": a, "score_1": b} for a, b in ((0.5, -0.5), (-1, 1), (0, 0))]
    assert better(tmp_path, rows) == ["x", "y"]
    groups, _ = read_groups(str(tmp_path / "rows.jsonl"), Reading(margin_from_scores=True))
    assert [group.judgements[0].margin for group in groups] == [1.0, 2.0]


def test_scores_that_contradict_the_verdict_are_refused(tmp_path: Path) -> None:
    row = {**AB, "winner": "a", "score_a": 1, "score_b": 9}
    with pytest.raises(DataError, match="name different responses") as caught:
        better(tmp_path, [row])
    assert "to use 'winner', set data.ignore=[score_a, score_b]" in caught.value.fix
    assert better(tmp_path, [row], ignore=("score_a", "score_b")) == ["x"]
    assert better(tmp_path, [row], ignore=("winner",)) == ["y"]
    assert better(tmp_path, [row | {"score_b": 1}]) == ["x"]


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("left", "right"), ("left", "right")),
        (("model_1_response", "model_2_response"), ("model_1", "model_2")),
        (("First one", "Second one"), ("First one", "Second one")),
        (("response_1", "response_2"), ("response_1", "response_2")),
    ],
)
@pytest.mark.parametrize("winner", ["winner", "better one"])
def test_names_of_mapped_columns_are_verdicts(
    tmp_path: Path, names: tuple[str, str], values: tuple[str, str], winner: str
) -> None:
    rows = [{"prompt": "p", names[0]: "x", names[1]: "y", winner: value} for value in values]
    columns = {"response_a": names[0], "response_b": names[1], "winner": winner}
    assert better(tmp_path, rows, columns=columns) == ["x", "y"]


def test_the_setting_that_is_suggested_names_two_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.winner_values=\{a: 1, b: 2\}"):
        better(tmp_path, [{**AB, "winner": 1}])


def test_the_safer_response_is_noted_where_it_is_not_the_better_one(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}
    path = str(write_jsonl(tmp_path / "rows.jsonl", [row, row | {"safer_response_id": 0}]))
    groups, account = read_groups(path)
    assert [group.responses[0] for group in groups] == ["x", "x"]
    assert list(account.noted.values()) == [[f"{path}:1"]]
    assert better(tmp_path, [row], columns={"winner": "safer_response_id"}) == ["y"]
    del row["better_response_id"]
    assert better(tmp_path, [row]) == ["y"]
