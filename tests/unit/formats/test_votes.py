"""Two responses and a verdict: one column, one of three columns, or a score per response."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import better_responses, read_rows

from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError
from preftune.formats.parsers import Reading

AB = {"prompt": "p", "response_a": "x", "response_b": "y"}


NUMBERED = {"question": "p", "answer_0": "x", "answer_1": "y"}


def better(folder: Path, rows: list[dict[str, Any]], **reading: Any) -> list[str]:
    groups, _ = read_groups(str(write_jsonl(folder / "rows.jsonl", rows)), Reading(**reading))
    return [str(group.responses[group.judgements[0].better]) for group in groups]


@pytest.mark.parametrize(
    ("columns", "winners", "settings", "first"),
    [
        (("response_a", "response_b"), ["a", "b", "tie"], {}, ["x", "y", None]),
        (("response_a", "response_b"), ["model_b", "tie (bothbad)", "model_a"], {}, ["y", None, "x"]),
        (("response_a", "response_b"), ["response_b", "A"], {}, ["y", "x"]),
        (("response_a", "response_b"), [0, 1, 1.0], {}, ["x", "y", "y"]),
        (("response_a", "response_b"), ["1", "2"], {}, ["x", "y"]),
        (("response_1", "response_2"), [1, 1], {}, ["x", "x"]),
        (("response_0", "response_1"), [1, 1], {}, ["y", "y"]),
        (("output_1", "output_2"), [2, 1], {}, ["y", "x"]),
        (("response_a", "response_b"), ["l", "r", "-"], {"a": "l", "b": "r", "tie": "-"}, ["x", "y", None]),
        (("response_a", "response_b"), [1, 0], {"a": 1, "b": 0}, ["x", "y"]),
        (("response_a", "response_b"), [True, False], {"a": True, "b": False}, ["x", "y"]),
        (("response_a", "response_b"), [5, 4, 3], {"a": [5, 4], "b": 3}, ["x", "x", "y"]),
    ],
)
def test_verdicts_of_all_spellings_name_the_better_response(
    tmp_path: Path, columns: tuple[str, str], winners: list[Any], settings: dict[str, Any], first: list[str | None]
) -> None:
    rows = [{"prompt": "p", columns[0]: "x", columns[1]: "y", "winner": winner} for winner in winners]
    groups, account = read_rows(tmp_path, rows, winner_values=settings)
    by_line = {
        int(group.origin.rpartition(":")[2]): text for group, text in zip(groups, better_responses(groups), strict=True)
    }
    assert [by_line.get(line) for line in range(1, len(rows) + 1)] == first
    assert len(account.dropped.get("tie", [])) == first.count(None)


def test_the_responses_of_votes_keep_their_order(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "winner": winner} for winner in "abb"]
    groups, _ = read_rows(tmp_path, rows)
    assert [group.responses for group in groups] == [("x", "y")] * 3
    assert [(group.judgements[0].better, group.judgements[0].worse) for group in groups] == [(0, 1), (1, 0), (1, 0)]


@pytest.mark.parametrize(("first", "second", "words"), [(1, 0, "x"), (0, 1, "y")])
def test_a_verdict_can_be_one_of_three_columns(tmp_path: Path, first: int, second: int, words: str) -> None:
    row = {**AB, "winner_model_a": first, "winner_model_b": second, "winner_tie": 0}
    assert better(tmp_path, [row]) == [words]


def test_a_marked_tie_is_dropped_and_two_marks_are_an_error(tmp_path: Path) -> None:
    row = {**AB, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    assert better(tmp_path, [row]) == []
    with pytest.raises(DataError, match="exactly one of the columns winner_model_a, winner_model_b, winner_tie"):
        better(tmp_path, [row | {"winner_model_a": 1}])


def test_a_score_per_response_is_a_verdict(tmp_path: Path) -> None:
    rows = [{**NUMBERED, "score_0": a, "score_1": b} for a, b in ((0.5, -0.5), (-1, 1), (0, 0))]
    assert better(tmp_path, rows) == ["x", "y"]
    groups, _ = read_groups(str(tmp_path / "rows.jsonl"), Reading(margin_from_scores=True))
    assert [group.judgements[0].margin for group in groups] == [1.0, 2.0]


def test_scores_that_contradict_the_verdict_are_an_error(tmp_path: Path) -> None:
    row = {**AB, "winner": "a", "score_a": 1, "score_b": 9}
    with pytest.raises(DataError, match="name different responses") as caught:
        better(tmp_path, [row])
    assert "to use 'winner', set 'data.ignore=[score_a, score_b]'" in caught.value.fix
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


def test_the_columns_of_votes_can_be_mapped(tmp_path: Path) -> None:
    rows = [{"q": "p", "left": "x", "right": "y", "vote": vote} for vote in ("b", "a")]
    mapping = {"prompt": "q", "response_a": "left", "response_b": "right", "winner": "vote"}
    assert better_responses(read_rows(tmp_path, rows, columns=mapping)[0]) == ["y", "x"]


@pytest.mark.parametrize(
    ("column", "values"), [("winner", [1, 1]), ("winner", [0, 2]), ("winner", [0, 1, 2]), ("label", [0, 1])]
)
def test_ambiguous_numbers_need_winner_values(tmp_path: Path, column: str, values: list[int]) -> None:
    with pytest.raises(DataError, match=r"not clear which response each means(.|\n)*data.winner_values=\{a: "):
        read_rows(tmp_path, [{**AB, column: value} for value in values])


def test_invalid_winner_values_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.winner_values: unknown side 'A'"):
        read_rows(tmp_path, [{**AB, "winner": "l"}], winner_values={"A": "l"})
    with pytest.raises(ConfigError, match="'l' has two meanings"):
        read_rows(tmp_path, [{**AB, "winner": "l"}], winner_values={"a": "l", "b": "l"})


def test_label_1_means_the_first_response_in_shp(tmp_path: Path) -> None:
    row = {"history": "p", "human_ref_A": "x", "human_ref_B": "y", "post_id": "7", "domain": "d", "score_ratio": 2.0}
    groups, _ = read_rows(tmp_path, [{**row, "labels": 1}, {**row, "labels": 0}])
    assert [group.prompt for group in groups] == ["p", "p"]
    assert better_responses(groups) == ["x", "y"]


def test_the_suggested_winner_values_name_two_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.winner_values=\{a: 1, b: 2\}"):
        better(tmp_path, [{**AB, "winner": 1}])


def test_the_two_verdicts_of_pku_need_an_aspect_where_they_differ(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}
    equal = row | {"safer_response_id": 0}
    assert better(tmp_path, [equal]) == ["x"]
    with pytest.raises(DataError, match=r"(?s)rows.jsonl:2: .*prefer different responses.*data.aspect=helpful.*=safe"):
        better(tmp_path, [equal, row])
    assert better(tmp_path, [equal, row], aspect="helpful") == ["x", "x"]
    assert better(tmp_path, [equal, row], aspect="safe") == ["x", "y"]
    assert better(tmp_path, [row], columns={"winner": "safer_response_id"}) == ["y"]
    del row["better_response_id"]
    assert better(tmp_path, [row]) == ["y"]


def test_half_uses_ties_with_probability_one_half(tmp_path: Path) -> None:
    rows = [{**AB, "winner": "tie"}, {**AB, "winner": "b"}]
    groups, account = read_rows(tmp_path, rows, ties="half")
    assert [group.judgements[0].probability for group in groups] == [0.5, 1.0]
    assert account.kept == 2
    scored = {"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 3, "score_rejected": 3}
    [group], _ = read_rows(tmp_path, [scored], ties="half")
    assert group.judgements[0].probability == 0.5
    ranked = {"prompt": "p", "responses": ["x", "y", "z"], "scores": [1, 2, 1]}
    [group], _ = read_rows(tmp_path, [ranked], ties="half")
    assert {(j.better, j.worse, j.probability) for j in group.judgements} == {(1, 0, 1.0), (1, 2, 1.0), (0, 2, 0.5)}


def test_ties_do_not_count_as_dropped_rows(tmp_path: Path) -> None:
    tie, decided = {**AB, "winner": "tie"}, {**AB, "winner": "b"}
    _, account = read_rows(tmp_path, [tie, tie, tie, decided])
    account.check(0.0)
    _, account = read_rows(tmp_path, [tie, tie, decided, {**AB, "winner": "b", "response_a": ""}])
    account.check(0.5)
    with pytest.raises(DataError, match=r"1 of 2 rows were dropped \(50%\)"):
        account.check(0.4)
    _, account = read_rows(tmp_path, [tie, tie])
    with pytest.raises(DataError, match="none of the 2 rows can be used"):
        account.check(1.0)


@pytest.mark.parametrize(
    ("winners", "more", "note"),
    [
        ("aaaaaa", {}, "all 6 verdicts favour the response shown first"),
        ("bbbbbbb", {}, "all 7 verdicts favour the response shown second"),
        ("tbbbbbbt", {}, "all 6 verdicts that are not ties favour the response shown second"),
        ("ttt", {}, "all 3 verdicts are ties"),
        ("aaa", {"probability": 0.5}, "all 3 verdicts are ties"),
        ("aaaaaa", {"probability": 0.1}, "all 6 verdicts favour the response shown second"),
        ("aaaaab", {}, ""),
        ("aaaaa", {}, ""),  # too few
        ("tttttttta", {}, ""),
    ],
)
def test_one_sided_verdicts_are_noted(tmp_path: Path, winners: str, more: dict[str, float], note: str) -> None:
    words = {"a": "a", "b": "b", "t": "tie"}
    sides = {"response_a": "x", "response_b": "y"}
    rows = [{"prompt": f"p{i}", **sides, "winner": words[w], **more} for i, w in enumerate(winners)]
    _, account = read_rows(tmp_path, rows)
    assert [noted.startswith(note) for noted in account.noted] == ([True] if note else [])
    posts = [{"info": {"post": f"p{i}"}, "summaries": [{"text": "x"}, {"text": "y"}]} for i in range(len(winners))]
    if "t" not in winners and not more:
        rows = [{**post, "choice": "ab".index(w)} for post, w in zip(posts, winners, strict=True)]
        _, account = read_rows(tmp_path, rows)
        assert [noted.startswith(note) for noted in account.noted] == ([True] if note else [])
