"""Scores of the two responses of a pair: names, margins and contradictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.formats.examples import PAIR_ROW, read_rows

from preftune.data.read_groups import read_groups
from preftune.errors import DataError


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("rating_chosen", "rating_rejected"),
        ("chosen_reward", "rejected_reward"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    ],
)
def test_score_columns_of_all_known_names_are_used(tmp_path: Path, better: str, worse: str) -> None:
    groups, _ = read_rows(tmp_path, [{**PAIR_ROW, better: 3, worse: 1}], margin_from_scores=True)
    assert groups[0].judgements[0].margin == 2
    assert read_rows(tmp_path, [{**PAIR_ROW, better: 1, worse: 1}])[1].dropped
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [{**PAIR_ROW, better: 1, worse: 3}])
    assert f"the rejected response has the higher score: {better} 1 and {worse} 3" in caught.value.what
    assert f"data.ignore=[{better}, {worse}]" in caught.value.fix
    assert len(read_rows(tmp_path, [{**PAIR_ROW, better: 1, worse: 3}], ignore=(better, worse))[0]) == 1
    assert len(read_rows(tmp_path, [{**PAIR_ROW, better: 1, worse: None}])[0]) == 1


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("chosen_armorm_score", "rejected_armorm_score"),
        ("chosen_quality", "rejected_quality"),
        ("rm_score_chosen",) * 2,
    ],
)
def test_scores_that_contradict_the_pair_are_an_error(tmp_path: Path, better: str, worse: str, kind: str) -> None:
    worse = better.replace("chosen", "rejected")

    def read_pair(high: float, low: float) -> None:
        row = {**PAIR_ROW, better: high, worse: low}
        path = tmp_path / f"rows.{kind}"
        path.write_text(
            json.dumps(row) + "\n" if kind == "jsonl" else f"{','.join(row)}\n{','.join(map(str, row.values()))}\n"
        )
        assert read_groups(str(path))[1].kept == 1

    with pytest.raises(DataError, match=rf"higher score: {better} 1 and {worse} 2"):
        read_pair(1, 2)
    read_pair(2, 1)
    read_pair(2, 2)


def test_one_of_several_scores_may_favour_the_rejected_response(tmp_path: Path) -> None:
    scores = {"chosen_style_score": 1, "rejected_style_score": 2, "chosen_truth_score": 5, "rejected_truth_score": 1}
    _, account = read_rows(tmp_path, [{**PAIR_ROW, **scores}])
    assert account.columns["chosen_style_score"] == "metadata"
