"""Each column of a row is used, metadata, ignored or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_jsonl
from tests.unit.formats.examples import PAIR_ROW, S, U, chat, read_rows

from preftune.data.prompts import read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.account import require_matched
from preftune.formats.columns import STATUS_TEXT
from preftune.formats.parsers import Reading
from preftune.formats.values import is_blank

NAMES = st.sampled_from(
    (
        *("id", "source", "turn_id", "persona", "tools", "images", "system", "history", "input", "question", "promt"),
        *("text", "weight", "score_chosen", "notes", "messages", "metadata", "num_turns", "label", "reply", "date"),
    )
)


WORDS = st.sampled_from(["", "good words", "Say it.", "Other words.", "[]", "x"])


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS)


VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2))


ROWS = st.dictionaries(NAMES, VALUES, max_size=5).map(lambda more: {**PAIR_ROW, **more})


IGNORED = st.lists(NAMES, max_size=2, unique=True).map(tuple)


@given(ROWS, IGNORED)
def test_every_column_has_a_status_or_is_named_in_an_error(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], ignore: tuple[str, ...]
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    try:
        _, account = read_rows(folder, [row], ignore=ignore)
    except DataError as error:  # the message names the refused column
        named = [name for name in row if f"{name!r}" in error.what]
        assert named
        assert not set(named) & set(ignore)
        return
    assert set(account.columns) == set(row)
    assert set(account.columns.values()) <= set(STATUS_TEXT.values())
    assert {name for name, status in account.columns.items() if status == "ignored"} == set(ignore) & set(row)
    assert {name for name, status in account.columns.items() if status == "empty"} == {
        name for name in row if is_blank(row[name]) and name not in ignore
    }


@given(ROWS, VALUES)
def test_an_unused_column_does_not_change_the_groups(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], value: Any
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    try:
        groups, account = read_rows(folder, [row], ignore=("notes", "persona"))
    except DataError:
        return
    for column, status in account.columns.items():
        if status in ("metadata", "ignored"):
            try:
                again, _ = read_rows(folder, [{**row, column: value}], ignore=("notes", "persona"))
            except DataError:  # a value of another type may be refused
                continue
            assert again == groups


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "system", "history", "input"])
def test_a_used_column_changes_the_groups(tmp_path: Path, column: str) -> None:
    row = {**PAIR_ROW, "system": "s", "history": [["q", "a"]], "input": "i"}
    groups, account = read_rows(tmp_path, [row])
    assert account.columns[column] == "used"
    other = [["q", "b"]] if column == "history" else "other"
    assert read_rows(tmp_path, [{**row, column: other}])[0] != groups


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"promt": "p", "chosen": "a", "rejected": "b"}, "'promt' is not used (did you mean 'prompt'?)", "{prompt: promt}"),
    ({**PAIR_ROW, "images": ["x.png"]}, "'images' contains images", "data.ignore=[images]"),
    ({**PAIR_ROW, "question": "Another?"}, "'question' is not used", "data.ignore=[question]"),
    ({**PAIR_ROW, "context": "c"}, "'context' belongs to the prompt", "{input: context}"),
    ({**PAIR_ROW, "persona": "p"}, "'persona' belongs to the prompt", "{input: persona}"),
    ({**PAIR_ROW, "reply": "r"}, "'reply' is not used", "data.ignore=[reply]"),
    ({**PAIR_ROW, "label": 1}, "'label' has no meaning in the format 'preference'", "data.ignore=[label]"),
    ({"prompt": "p", "completion": "c", "weight": 2}, "'weight' has no meaning", "data.ignore=[weight]"),
    (
        {"prompt": "p", "response": "c", "helpfulness": 4},
        "'helpfulness' rates the response",
        "data.ignore=[helpfulness]",
    ),
    ({"messages": chat(("user", "x"), ("assistant", "y")), "rejected": "z"}, "'rejected' is not used", "ignore=[rejec"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "system": "s"},
        "'system' belongs to the prompt",
        "data.ignore=[system]",
    ),
]


@pytest.mark.parametrize(("row", "what", "fix"), REFUSED, ids=[what for _, what, _ in REFUSED])
@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_the_error_for_a_refused_column_names_it_and_a_fix(
    tmp_path: Path, row: dict[str, Any], what: str, fix: str, bad_rows: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [row] * 3, bad_rows=bad_rows)
    assert what in caught.value.what
    assert "(3 of 3 rows)" in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize("row", [row for row, _, fix in REFUSED if "data.ignore" in fix])
def test_a_refused_column_can_be_ignored(tmp_path: Path, row: dict[str, Any]) -> None:
    column = list(row)[-1]
    _, account = read_rows(tmp_path, [row], ignore=(column,))
    assert account.columns[column] == "ignored"
    assert f"ignored: {column}" in account.lines()[1]


def test_rows_with_a_refused_column_are_dropped_if_they_are_few(tmp_path: Path) -> None:
    rows = [PAIR_ROW, {**PAIR_ROW, "images": ["x.png"]}, PAIR_ROW]
    groups, account = read_rows(tmp_path, rows, bad_rows="drop")
    assert len(groups) == 2
    [(reason, origins)] = account.dropped.items()
    assert reason == "cannot be read: column 'images' contains images, but preftune trains on text only"
    assert origins == [f"{tmp_path / 'rows.jsonl'}:2"]


def test_columns_that_repeat_used_columns_are_accepted(tmp_path: Path) -> None:
    dialogue = chat(("user", PAIR_ROW["prompt"]), ("assistant", PAIR_ROW["chosen"]))
    row = {
        **PAIR_ROW,
        "question": " Say it.",
        "messages": dialogue,
        "candidates": ["good words", "bad words", "others"],
    }
    _, account = read_rows(tmp_path, [row])
    assert {name for name, status in account.columns.items() if status.startswith("repeated")} == set(row) - set(
        PAIR_ROW
    )


def test_a_prompt_that_differs_from_the_dialogues_is_noted(tmp_path: Path) -> None:
    sides = {k: chat(("user", "hi"), ("assistant", k)) for k in ("chosen", "rejected")}
    groups, account = read_rows(tmp_path, [{"prompt": "hello", **sides}])
    assert groups[0].prompt == (U("hi"),)
    assert list(account.noted) == ["column 'prompt' differs from the prompt in the dialogues, which was used"]


def test_another_dialogue_or_question_is_refused_if_the_pair_has_dialogues(tmp_path: Path) -> None:
    sides = {k: chat(("user", "hi"), ("assistant", k)) for k in ("chosen", "rejected")}
    for column, value in (("messages", chat(("user", "other"))), ("question", "other"), ("context", "other")):
        with pytest.raises(DataError, match=f"column '{column}'"):
            read_rows(tmp_path, [{"prompt": "hi", column: value, **sides}])


def test_columns_of_bad_rows_are_listed(tmp_path: Path) -> None:
    rows = [PAIR_ROW, {"prompt": "p", "chosen": 3, "rejected": "b", "odd": "x"}]
    _, account = read_rows(tmp_path, rows, bad_rows="drop")
    assert account.columns["odd"] == "in dropped rows only"
    rows = [{"good": 3, "rejected": "b", "prompt": "p"}]
    _, account = read_rows(tmp_path, rows, bad_rows="drop", columns={"chosen": "good"})
    assert list(account.dropped) == ["cannot be read: column 'chosen' must be a list of messages, not a number"]


def test_ignoring_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    accounts = [read_rows(tmp_path, [{**PAIR_ROW, "source": "x"}], ignore=("sorce",))[1] for _ in range(2)]
    with pytest.raises(DataError, match=r"data.ignore lists the column 'sorce'(.|\n)*did you mean 'source'"):
        require_matched(tuple(accounts))
    matched = read_rows(tmp_path, [{**PAIR_ROW, "sorce": "x"}], ignore=("sorce",))[1]
    require_matched((accounts[0], matched))  # one of the files has the column


def test_columns_of_prompts_are_used_metadata_or_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"question": "q", "system": "s", "answer": "not part of the prompt"}])
    groups, account = read_prompts(str(path))
    assert [group.prompt for group in groups] == [(S("s"), U("q"))]
    assert account.columns == {"question": "used", "system": "used", "answer": "metadata"}
    path = write_jsonl(tmp_path / "p.jsonl", [{"ask": "q", "images": ["x.png"]}])
    with pytest.raises(DataError, match="'images' contains images"):
        read_prompts(str(path), Reading(columns={"prompt": "ask"}))
    assert read_prompts(str(path), Reading(columns={"prompt": "ask"}, ignore=("images",)))[0][0].prompt == "q"


def test_an_ignored_column_is_not_checked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": "?"}])
    assert len(read_groups(str(path), Reading(ignore=("margin",)))[0]) == 1


def test_ignored_fields_are_removed_from_judgements(tmp_path: Path) -> None:
    """Losses without soft labels suggest data.ignore=[probability], which must also work for groups."""
    judgement = {"better": 0, "worse": 1, "probability": 0.8}
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["x", "y"], "judgements": [judgement]}])
    (group,), _ = read_groups(str(path), Reading(ignore=("probability",)))
    assert group.judgements[0].probability == 1.0
    assert read_groups(str(path))[0][0].judgements[0].probability == 0.8


def test_the_error_for_no_usable_rows_names_unused_columns(tmp_path: Path) -> None:
    ask, good = {"role": "user", "content": "Say it."}, {"role": "assistant", "content": "good words"}
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [ask], "positive_messages": [good]}])
    _, account = read_groups(str(path))
    with pytest.raises(DataError, match=r"none of the 1 rows(.|\n)*not used: 'positive_messages'"):
        account.check(1.0)
