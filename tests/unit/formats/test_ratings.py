"""Responses with ratings, one per row, are compared if they answer the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.parsers import Reading


def rated(prompt: str, response: str, helpfulness: float, verbosity: float = 2) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": verbosity}


ROWS = [
    rated("p", "bad", 1, 4),
    rated("p", "good", 4, 1),
    rated("q", "only", 3),
    rated("r", "a", 2),
    rated("r", "b", 2),
]


def test_adjacent_rows_with_the_same_prompt_are_compared(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    [group], account = read_groups(path, Reading(aspect="helpfulness"))
    assert (group.prompt, group.responses, group.origin) == ("p", ("bad", "good"), f"{path}:1")
    assert [(j.better, j.worse) for j in group.judgements] == [(1, 0)]
    assert account.read == 5
    reasons = {reason: len(origins) for reason, origins in account.dropped.items()}
    alone = "no adjacent row has a different response to the same prompt; sort the file by prompt"
    assert reasons == {alone: 1, "tied scores": 2}
    [group], _ = read_groups(path, Reading(aspect="verbosity", where=("prompt == p",)))
    assert [(j.better, j.worse) for j in group.judgements] == [(0, 1)]


def test_without_an_aspect_the_setting_is_named(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(DataError, match=r"data\.aspect=helpfulness"):
        read_groups(path)


def test_an_annotation_of_ultrafeedback_is_an_aspect(tmp_path: Path) -> None:
    def completion(text: str, overall: float, honesty: str) -> dict[str, Any]:
        return {"response": text, "overall_score": overall, "annotations": {"honesty": {"Rating": honesty}}}

    row = {"instruction": "p", "completions": [completion("x", 9, "1"), completion("y", 2, "5")]}
    path = str(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert read_groups(path)[0][0].judgements[0].better == 0
    assert read_groups(path, Reading(aspect="honesty"))[0][0].judgements[0].better == 1
    with pytest.raises(DataError, match=r"no rating 'truth' \(data.aspect\)(.|\n)*honesty, overall_score"):
        read_groups(path, Reading(aspect="truth"))


def test_an_aspect_that_nothing_uses_is_an_error(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    with pytest.raises(DataError, match="no judgements to choose from"):
        read_groups(path, Reading(aspect="helpful"))


def drops(account: Account) -> dict[str, list[str]]:
    return {reason: [o.rpartition(":")[2] for o in origins] for reason, origins in account.dropped.items()}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("history", ([["old q", "old a"]], [["other q", "other a"]])),
        ("history", ([["old q", "old a"]], [])),
        ("system_prompt", ("be brief", "be kind")),
        ("system_message", ("be brief", None)),
        ("tools", ([{"name": "search", "description": "d"}], [{"name": "open", "description": "d"}])),
        ("input", ("12", "13")),
        ("document", ("the sea", "the land")),
    ],
)
def test_rows_with_different_contexts_are_not_compared(tmp_path: Path, column: str, values: tuple[Any, Any]) -> None:
    first, second = values
    rows = [rated("p", "a", 1) | {column: first}, rated("p", "b", 4) | {column: second}]
    rows += [rated("q", "a", 1) | {column: first}, rated("q", "b", 4) | {column: first}]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    ignore = (column,) if column == "document" else ()
    if ignore:
        with pytest.raises(DataError, match=f"column '{column}' belongs to the prompt"):
            read_groups(path, Reading(aspect="helpfulness"))
    else:
        [group], account = read_groups(path, Reading(aspect="helpfulness"))
        assert group.origin == f"{path}:3"
        assert (account.read, account.kept) == (4, 2)
        assert drops(account) == {f"the adjacent rows with the same prompt differ in {column!r}": ["1", "2"]}
        assert account.remedies == [f"join them with data.ignore=[{column}]"]
    assert len(read_groups(path, Reading(aspect="helpfulness", ignore=(column,)))[0]) == 2


def test_rows_that_differ_only_in_ratings_and_metadata_are_compared(tmp_path: Path) -> None:
    more = [{"id": "1", "coherence": 3, "model": "m", "annotator_comment": "fine"}, {"id": "2", "coherence": 4}]
    rows = [rated("p", "a", 1) | more[0], rated("p", "b", 4) | more[1] | {"model": "n", "system": ""}]
    [group], _ = read_groups(str(write_jsonl(tmp_path / "a.jsonl", rows)), Reading(aspect="helpfulness"))
    assert group.responses == ("a", "b")


def test_renamed_columns_are_accounted_for(tmp_path: Path) -> None:
    rows = [{"q": "p", "ans": "bad", "stars": 1}, {"q": "p", "ans": "good", "stars": 2}]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    columns = {"prompt": "q", "response": "ans"}
    [group], account = read_groups(path, Reading(aspect="stars", columns=columns))
    assert group.judgements[0].better == 1
    assert account.columns == {"q": "used as prompt", "ans": "used as response", "stars": "used"}
    for aspect in ("scores", "stars"):
        [group], _ = read_groups(path, Reading(aspect=aspect, columns=columns | {"scores": "stars"}))
        assert group.judgements[0].better == 1
    with pytest.raises(DataError, match="'answr', which no row has"):
        read_groups(path, Reading(aspect="stars", columns={"prompt": "q", "response": "answr"}))


def test_two_columns_with_one_name_are_an_error_of_the_row(tmp_path: Path) -> None:
    rows = [{"q": "p", "response": "a", "stars": 1}, {"q": "p", "response": "b", "stars": 2}]
    rows += [{"q": "p", "prompt": "another", "response": "b", "stars": 2}]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=r"a.jsonl:3: data.columns gives a different column the name 'prompt'"):
        read_groups(path, Reading(aspect="stars", columns={"prompt": "q"}))


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_missing_rating_drops_one_response(tmp_path: Path, missing: Any) -> None:
    rows = [rated("p", "none", missing), rated("p", "bad", 1), rated("p", "good", 4)]
    [group], account = read_groups(str(write_jsonl(tmp_path / "a.jsonl", rows)), Reading(aspect="helpfulness"))
    assert group.responses == ("bad", "good")
    assert drops(account) == {"the response has no rating 'helpfulness'": ["1"]}
    assert (account.read, account.kept) == (3, 2)


def test_a_rating_that_is_not_a_number_is_an_error_of_the_row(tmp_path: Path) -> None:
    rows = [rated("p", "a", 1), rated("p", "b", 2), rated("p", "c", "high")]  # type: ignore[arg-type]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=r"a.jsonl:3: column 'helpfulness' must be a number, not 'high'"):
        read_groups(path, Reading(aspect="helpfulness"))
    [group], account = read_groups(path, Reading(aspect="helpfulness", bad_rows="drop"))
    assert (group.responses, account.read, account.kept) == (("a", "b"), 3, 2)


def test_all_rows_of_a_dropped_group_count(tmp_path: Path) -> None:
    rows = [rated("p", "a", 2), rated("p", "b", 2), rated("p", "c", 2), rated("q", "a", 1), rated("q", "b", 2)]
    _, account = read_groups(str(write_jsonl(tmp_path / "a.jsonl", rows)), Reading(aspect="helpfulness"))
    assert drops(account) == {"tied scores": ["1", "2", "3"]}
    assert (account.read, account.kept) == (5, 2)


def test_rated_summaries_of_a_text_are_compared_wherever_they_are(tmp_path: Path) -> None:
    def summary(post: str, text: str, overall: int) -> dict[str, Any]:
        axes = {"overall": overall, "accuracy": 7 - overall, "coverage": None}
        return {
            "info": {"id": post, "post": post, "article": None},
            "summary": {"text": text, "axes": axes},
            "worker": "w",
        }

    rows = [summary("p", "bad", 1), summary("q", "only", 4), summary("p", "good", 6)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    [group], account = read_groups(path, Reading(aspect="overall"))
    assert (group.prompt, group.responses) == ("POST: p\n\nTL;DR:", ("bad", "good"))
    assert group.judgements[0].better == 1
    assert account.columns == {"info": "used", "summary": "used", "worker": "metadata"}
    assert (account.read, account.kept) == (3, 2)
    assert read_groups(path, Reading(aspect="accuracy"))[0][0].judgements[0].better == 0
    with pytest.raises(DataError, match=r"data\.aspect to one of overall, accuracy$"):
        read_groups(path)
