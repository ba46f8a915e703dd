"""The words of verdicts, the names of the two responses, and verdicts of several annotators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.formats.examples import better_responses, read_rows

from preftune.errors import DataError
from preftune.formats.values import Fields
from preftune.formats.verdicts import normalise, response_columns, score_columns

AB = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A", "b"),
        ("left", "Right"),
        ("A>B", "B>>A"),
        ("[[A>>B]]", "[[B>A]]"),
        ("B<A", "A<<B"),
        ("A-is-slightly-better", "B-is-clearly-better"),
        ("Response A is better", "response b wins"),
        ("Assistant A", "output_b"),
        ("Slightly prefer A", "strongly prefer response B"),
        ("first", "the second one is not this"),
    ],
)
def test_words_of_verdicts(first: str, second: str) -> None:
    assert normalise(first) == "a"
    assert normalise(second) == ("the second one is not this" if "not" in second else "b")


@pytest.mark.parametrize(
    ("columns", "sides"),
    [
        (["conv_A", "conv_B"], ("conv_A", "conv_B")),
        (["summary2", "summary1"], ("summary1", "summary2")),
        (["Response A", "Response B"], ("Response A", "Response B")),
        (["output_left", "output_right"], ("output_left", "output_right")),
        (["response_a", "response_b", "response_c"], ("response_a", "response_b")),  # an exact name
        (["summary_a", "summary_b", "summary_c"], None),
        (["summary_a", "summary_b", "translation_a", "translation_b"], None),
        (["model_a", "model_b"], None),
    ],
)
def test_names_of_two_responses(columns: list[str], sides: tuple[str, str] | None) -> None:
    row: Fields = dict.fromkeys(columns, "x")
    assert response_columns(row) == sides


def test_scores_may_be_named_after_the_responses() -> None:
    row: Fields = dict.fromkeys(["conv_A", "conv_B", "conv_A_rating", "conv_B_rating"], 1)
    assert score_columns(row) == ("conv_A_rating", "conv_B_rating")


def test_numbers_of_votes_are_scores(tmp_path: Path) -> None:
    rows = [{**AB, "votes_a": 4, "votes_b": 1}, {**AB, "votes_a": 0, "votes_b": 2}, {**AB, "votes_a": 1, "votes_b": 1}]
    groups, account = read_rows(tmp_path, rows)
    assert better_responses(groups) == ["x", "y"]
    assert len(account.dropped["tie"]) == 1


def test_the_majority_of_annotator_columns_counts(tmp_path: Path) -> None:
    row = {"prompt": "p", "response1": "x", "response2": "y"}
    votes = [(1, 1, 2), (2, 2, 2), (2, 1, 2)]
    rows = [{**row, **{f"annotator{i}": v for i, v in enumerate(vote, start=1)}} for vote in votes]
    assert better_responses(read_rows(tmp_path, rows)[0]) == ["x", "y", "y"]
    rows += [{**row, "annotator1": 0, "annotator2": 0, "annotator3": 1}]
    with pytest.raises(DataError, match="column 'annotator1' has the values 0, 1, 2") as error:
        read_rows(tmp_path, rows)
    assert "{a: 1, b: 2, tie: 0}" in error.value.fix
    _, account = read_rows(tmp_path, rows, winner_values={"a": 1, "b": 2, "tie": 0})
    assert account.kept == 4  # two ties and one vote for the first


def test_answers_in_an_export_of_argilla_2(tmp_path: Path) -> None:
    row = {"prompt": "p", "response1": "x", "response2": "y"}
    exported: list[dict[str, Any]] = [
        {
            **row,
            "preference.responses": answers,
            "preference.responses.users": ["some user"] * len(answers),
            "preference.responses.status": statuses,
        }
        for answers, statuses in (
            (["response1"], ["submitted"]),
            (["response2", "response2", "response1"], ["submitted"] * 3),
            (["response1", "response2"], ["draft", "submitted"]),
        )
    ]
    groups, account = read_rows(tmp_path, exported)
    assert better_responses(groups) == ["x", "y", "y"]
    assert account.columns["preference.responses.status"] == "used"


def test_weighted_preferences_of_alpaca_eval(tmp_path: Path) -> None:
    row = {"instruction": "p", "output_1": "x", "output_2": "y", "generator_1": "m", "generator_2": "n"}
    rows = [{**row, "preference": value} for value in (1.0002, 1.97, 1.0, 2.0, 1.5)]
    groups, account = read_rows(tmp_path, rows)
    assert better_responses(groups) == ["x", "y", "x", "y"]
    assert len(account.dropped["tie"]) == 1
    without = [{key: value for key, value in row.items() if "generator" not in key} for row in rows]
    with pytest.raises(DataError, match=r"not 1\.0002"):
        read_rows(tmp_path, without)


def test_a_scale_is_refused_with_both_readings(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_1": "x", "response_2": "y"}
    rows = [{**row, "preference": value} for value in (1, 3, 4, 6, 7)]
    with pytest.raises(DataError) as error:
        read_rows(tmp_path, rows)
    assert "{a: [1, 2, 3], tie: 4, b: [5, 6, 7]}" in error.value.fix
    assert "swap the two lists" in error.value.fix
    values = {"a": [1, 2, 3], "tie": 4, "b": [5, 6, 7]}
    assert better_responses(read_rows(tmp_path, rows, winner_values=values)[0]) == ["x", "x", "y", "y"]
