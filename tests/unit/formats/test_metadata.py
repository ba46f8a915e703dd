"""Columns that describe a row are metadata. Columns with text for the model are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import PAIR_ROW

from preftune.data.read_groups import read_groups
from preftune.errors import DataError

DEMONSTRATION = {"instruction": "Say it.", "output": "good words"}


LONG = "A long article about the sea. " * 9


def statuses(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """Return the status of each column of a row, or {"error": message} if a column is refused."""
    try:
        return read_groups(str(write_jsonl(folder / "rows.jsonl", [row])))[1].columns
    except DataError as error:
        return {"error": f"{error.what}; {error.fix}"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("generator_1", "m"), ("chosen-source", "m"), ("score_j", 1), ("quality", "high"), ("intent", "ask")],
        *[("chosen_reason", "shorter"), ("gen_input_configs", {"t": "x"}), ("annotator_comment", "fine")],
        *[("header", {"a": "b"}), ("source", "forum"), ("task", "open question answering"), ("rationale", LONG)],
        *[("temperature", "0.7"), ("upvotes", "12"), ("verified", "True"), ("share", "12.5%"), ("gap", "nan")],
        *[("subreddit", "AskReddit"), ("meta_origin", "a forum"), ("is_long", "yes"), ("judge_output", LONG)],
        *[("image_id", "x"), ("has_image", False), ("num_images", 0), ("metadata", LONG)],
    ],
)
def test_columns_that_describe_a_row_are_metadata(tmp_path: Path, column: str, value: Any) -> None:
    assert statuses(tmp_path, {**PAIR_ROW, column: value}).get(column) == "metadata"


@pytest.mark.parametrize(
    "column",
    ["source", "task", "topic", "category", "domain", "article_source", "meta_prompt", "n_shot", "has_context"],
)
def test_long_text_in_a_label_column_is_refused(tmp_path: Path, column: str) -> None:
    assert f"{column!r} is not used" in statuses(tmp_path, {**PAIR_ROW, column: LONG})["error"]


@pytest.mark.parametrize(
    "row", [{"task": "Translate the text to French."}, {"topic": [{"role": "user", "content": "hi"}]}]
)
def test_a_sentence_or_dialogue_in_a_label_column_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    assert f"{next(iter(row))!r} is not used" in statuses(tmp_path, {**PAIR_ROW, **row})["error"]


@pytest.mark.parametrize("column", ["image_url", "image_paths", "Image", "video_path", "Tools", "audio_file"])
def test_media_and_tools_are_refused_for_all_their_names(tmp_path: Path, column: str) -> None:
    error = statuses(tmp_path, {**PAIR_ROW, column: ["x.png"]})["error"]
    assert f"column {column!r} " in error
    assert f"data.ignore=[{column}]" in error


def test_a_task_column_is_suggested_as_missing_prompt(tmp_path: Path) -> None:
    row = {"task": "Tell me of the sea", "chosen": "The sea is wide", "rejected": "The moon"}
    assert "data.columns={prompt: task}" in statuses(tmp_path, row)["error"]


def test_a_dialogue_column_is_suggested_as_missing_prompt(tmp_path: Path) -> None:
    row = {"so_far": [{"from": "user", "value": "Say it."}], "chosen": "The sea", "rejected": "The moon"}
    assert "data.columns={prompt: so_far}" in statuses(tmp_path, row)["error"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("### Instruction:\nSay it.\n\n### Response:\ngood words", True),
        ("Below is an instruction. ...", True),
        ("Say it. good words", True),
        ("An article that is to be shortened", False),
    ],
)
def test_the_text_column_of_a_demonstration_must_repeat_the_row(tmp_path: Path, text: str, repeats: bool) -> None:
    columns = statuses(tmp_path, {**DEMONSTRATION, "text": text})
    assert ("error" not in columns) == repeats
    assert repeats or "data.columns={input: text}" in columns["error"]


@pytest.mark.parametrize("column", ["desirable", "correct", "liked", "is_good"])
@pytest.mark.parametrize("value", [False, "false", 0])
def test_a_demonstration_marked_as_bad_is_refused(tmp_path: Path, column: str, value: Any) -> None:
    assert f"data.columns={{label: {column}}}" in statuses(tmp_path, {**DEMONSTRATION, column: value})["error"]
    assert statuses(tmp_path, {**DEMONSTRATION, column: True})[column] == "metadata"
    assert statuses(tmp_path, {**PAIR_ROW, column: value})[column] == "metadata"


def test_numbers_in_a_column_with_a_misspelt_name_are_refused(tmp_path: Path) -> None:
    assert "{prompt: promt}" in statuses(tmp_path, {"promt": "12", "chosen": "a", "rejected": "b"})["error"]


def test_the_name_of_a_number_is_not_suggested_for_text(tmp_path: Path) -> None:
    assert "probability" not in statuses(tmp_path, {**PAIR_ROW, "probabilty": "so so"})["error"]
    assert statuses(tmp_path, {**PAIR_ROW, "ability": "math"})["ability"] == "metadata"


def test_numbers_of_csv_cells_are_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,temperature\nSay it.,good words,bad words,0.7\n")
    assert read_groups(str(path))[1].columns["temperature"] == "metadata"


def test_structs_of_nulls_are_empty(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    row = {**PAIR_ROW, "input": {"messages": None}, "system": {"text": None}, "history": [{"q": None}], "tools": [None]}
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    groups, account = read_groups(str(tmp_path / "a.parquet"))
    assert groups[0].prompt == "Say it."
    assert {account.columns[name] for name in ("input", "system", "history", "tools")} == {"empty"}
