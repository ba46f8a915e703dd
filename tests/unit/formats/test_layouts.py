"""Rows of label tools and other programs are rewritten, and every column of the file is still accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.formats.examples import A, S, U, chat, read_rows

from preftune.errors import DataError
from preftune.types import PreferenceGroup


def better_and_worse(groups: list[PreferenceGroup]) -> list[tuple[Any, Any]]:
    return [(g.responses[j.better], g.responses[j.worse]) for g in groups for j in g.judgements]


def task(*selected: str, kind: str = "pairwise", cancelled: bool = False, **data: str) -> dict[str, Any]:
    values = [{"choices": [s]} if kind == "choices" else {"selected": s} for s in selected]
    annotations = [{"result": [{"type": kind, "value": v}], "was_cancelled": cancelled} for v in values]
    envelope = {"id": 1, "file_upload": "some file.json", "drafts": [], "predictions": [], "project": 3}
    return {**envelope, "annotations": annotations, "data": data or {"prompt": "p", "answer1": "x", "answer2": "y"}}


def test_pairwise_tasks_of_label_studio_are_votes(tmp_path: Path) -> None:
    rows = [task("left"), task("right"), task("right", "left", "right"), task("left", kind="choices")]
    groups, account = read_rows(tmp_path, rows)
    assert better_and_worse(groups) == [("x", "y"), ("y", "x"), ("y", "x"), ("x", "y")]
    assert {group.prompt for group in groups} == {"p"}
    assert account.columns == {
        **dict.fromkeys(("data", "annotations"), "used"),
        **dict.fromkeys(("id", "file_upload", "project"), "metadata"),
        **dict.fromkeys(("drafts", "predictions"), "empty"),
    }


def test_cancelled_and_equal_annotations_of_label_studio_are_counted(tmp_path: Path) -> None:
    rows = [task("left"), task("right"), task("left"), task("left", cancelled=True), task("left", "right")]
    _, account = read_rows(tmp_path, rows, ties="drop")
    dropped = {reason: len(origins) for reason, origins in account.dropped.items()}
    assert dropped == {"no annotator has judged the row": 1, "tie": 1}


def test_other_fields_of_a_task_can_be_mapped(tmp_path: Path) -> None:
    rows = [task("left", q="p", text1="x", text2="y"), task("right", q="p", text1="x", text2="y")]
    with pytest.raises(DataError) as error:
        read_rows(tmp_path, rows)
    assert "{prompt: q, response_a: text1, response_b: text2, winner: preference}" in error.value.fix
    columns = {"response_a": "text1", "response_b": "text2", "prompt": "q"}
    groups, _ = read_rows(tmp_path, rows, columns=columns)
    assert better_and_worse(groups) == [("x", "y"), ("y", "x")]
    columns |= {"prompt": "data.q", "response_a": "data.text1", "response_b": "data.text2"}
    columns["winner"] = "annotations.*.result.0.value.selected"  # fields of the file itself
    groups, _ = read_rows(tmp_path, rows, columns=columns)
    assert better_and_worse(groups) == [("x", "y"), ("y", "x")]


def test_rankings_of_label_studio_use_the_mean_rank(tmp_path: Path) -> None:
    items = [{"id": name, "title": "Model", "body": f"text {name}"} for name in "abc"]
    rankings = [["c", "a", "b"], ["c", "b", "a"], ["a", "c", "b"]]  # mean ranks: a 1, b 1.67, c 0.33
    annotations = [{"result": [{"type": "ranker", "value": {"ranker": ranking}}]} for ranking in rankings]
    groups, _ = read_rows(tmp_path, [{"id": 1, "data": {"prompt": "p", "items": items}, "annotations": annotations}])
    assert groups[0].ranks == (2.0, 3.0, 1.0)
    assert groups[0].responses == ("text a", "text b", "text c")


def choice(accept: list[int], options: str = "xy", answer: str = "accept", **fields: Any) -> dict[str, Any]:
    listed = [{"id": i, "text": text} for i, text in enumerate(options)]
    return {"text": "p", "options": listed, "accept": accept, "answer": answer, "_task_hash": -1, **fields}


def test_choices_of_prodigy_are_votes(tmp_path: Path) -> None:
    rows = [
        choice([0]),
        choice([1]),
        choice([0]),
        choice([1]),
        choice([]),
        choice([0], answer="reject"),
        choice([0, 1]),
    ]
    groups, account = read_rows(tmp_path, rows)
    assert better_and_worse(groups) == [("x", "y"), ("y", "x"), ("x", "y"), ("y", "x")]
    dropped = {reason: len(origins) for reason, origins in account.dropped.items()}
    assert dropped == {"no annotator has judged the row": 2, "tie": 1}
    assert account.columns["options"] == account.columns["text"] == "used"


def test_of_more_choices_the_accepted_ones_are_better_than_the_others(tmp_path: Path) -> None:
    groups, _ = read_rows(tmp_path, [choice([2, 0], "xyz")])
    assert better_and_worse(groups) == [("x", "y"), ("z", "y")]


def test_the_text_of_a_choice_with_a_prompt_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'text' is not used"):
        read_rows(tmp_path, [choice([0], prompt="q"), choice([1], prompt="q")])


def test_sorted_responses_of_paddlenlp_are_ranked(tmp_path: Path) -> None:
    single = {"src": ["p"], "tgt": [], "response": [["x"], ["y"]], "sort": [0, 1]}
    groups, account = read_rows(tmp_path, [single])
    assert better_and_worse(groups) == [("y", "x")]
    assert groups[0].prompt == "p"
    assert account.columns == dict.fromkeys(("src", "response", "sort"), "used")
    several = {"system": "s", "src": ["p", "q"], "tgt": ["a"], "response": ["x", "y"], "sort": [2, 1]}
    groups, _ = read_rows(tmp_path, [several])
    assert groups[0].prompt == (S("s"), U("p"), A("a"), U("q"))
    assert better_and_worse(groups) == [((A("x"),), (A("y"),))]
    with pytest.raises(DataError):
        read_rows(tmp_path, [single | {"src": ["p", "q"]}])


def test_dialogues_in_objects_are_read_with_their_system_text(tmp_path: Path) -> None:
    sides = {
        name: {"system": "s", "tools": [], "messages": chat(("user", "p"), ("assistant", text))}
        for name, text in (("chosen", "x"), ("rejected", "y"))
    }
    groups, _ = read_rows(tmp_path, [sides])
    assert groups[0].prompt == (S("s"), U("p"))
    assert better_and_worse(groups) == [((A("x"),), (A("y"),))]
    with pytest.raises(DataError):  # tools are not lost
        read_rows(tmp_path, [{**sides, "chosen": {**sides["chosen"], "tools": [{"name": "f"}]}}])


@pytest.mark.parametrize(("kind", "order"), [("score", [("x", "z"), ("x", "y"), ("z", "y")]), ("rank", None)])
def test_responses_and_grades_in_numbered_columns_are_ranked(tmp_path: Path, kind: str, order: Any) -> None:
    row = {"prompt": "p", "response_1": "x", "response_2": "y", "response_3": "z", "response_4": ""}
    row |= {f"{kind}_{i}": value for i, value in enumerate(("3", "1", "2", ""), start=1)}
    groups, account = read_rows(tmp_path, [row])
    order = order or [(b, a) for a, b in [("x", "z"), ("x", "y"), ("z", "y")]]
    assert sorted(better_and_worse(groups)) == sorted(order)
    assert account.columns["response_1"] == account.columns[f"{kind}_1"] == "used"


def test_graded_responses_may_be_in_a_column_output(tmp_path: Path) -> None:
    items = [{"text": "x", "score": -1.0}, {"text": "y", "score": 1.0}]
    groups, _ = read_rows(tmp_path, [{"input": "p", "output": items}])
    assert better_and_worse(groups) == [("y", "x")]


def test_the_system_text_of_gemini_is_read(tmp_path: Path) -> None:
    part = lambda role, text: {"role": role, "parts": [{"text": text}]}  # noqa: E731
    completions = [{"score": 0, "completion": part("model", "x")}, {"score": 1, "completion": part("model", "y")}]
    row = {"systemInstruction": part("system", "s"), "contents": [part("user", "p")], "completions": completions}
    groups, account = read_rows(tmp_path, [row])
    assert groups[0].prompt == (S("s"), U("p"))
    assert better_and_worse(groups) == [((A("y"),), (A("x"),))]
    assert account.columns["systemInstruction"] == "used"


def test_rows_are_not_rewritten_for_a_named_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'response_a' is missing|column 'winner'|column 'prompt'"):
        read_rows(tmp_path, [choice([0])], format="votes")
