"""Tests of the forms in which the root object of a JSON file can have its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError
from preftune.sources.read import read

ROWS = [{"prompt": "a", "chosen": "b", "n": 1}, {"prompt": "c", "chosen": "d", "n": 2}]
CHATS = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]


def rows_of(tmp_path: Path, content: Any) -> list[dict[str, Any]]:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1))
    return [row.value for row in read(str(path))]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_columns_of_the_same_length_are_read_as_records(tmp_path: Path) -> None:
    assert rows_of(tmp_path, columns(ROWS)) == ROWS
    mixed = [{"prompt": chat, "chosen": "x"} for chat in CHATS]
    assert rows_of(tmp_path, columns(mixed)) == mixed
    (row,) = read(str(tmp_path / "a.json[:1]"))
    assert row.origin == f"{tmp_path / 'a.json'} (record 1)"


@pytest.mark.parametrize("orient", ["columns", "index", "split", "records", "table"])
def test_every_orientation_of_pandas_is_read(tmp_path: Path, orient: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(ROWS).to_json(tmp_path / "a.json", orient=orient)
    rows = [row.value for row in read(str(tmp_path / "a.json"))]
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS


def test_records_with_their_ids_as_keys_are_read(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"first": ROWS[0], "second": ROWS[1]}) == ROWS


def test_rows_of_the_viewer_of_the_hub_are_read(tmp_path: Path) -> None:
    answer = {"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": []}]}
    assert rows_of(tmp_path, answer) == ROWS[:1]
    answer["rows"][0]["truncated_cells"] = ["prompt"]  # type: ignore[index]
    with pytest.raises(DataError, match="2 lists"):
        rows_of(tmp_path, answer)


def test_the_only_list_of_objects_is_read_next_to_lists_of_values(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"authors": ["x"], "tags": [], "data": ROWS}) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        {"train": ROWS, "test": ROWS},
        {"train": ROWS, "test": ROWS[:1]},
        {"train": columns(ROWS), "test": columns(ROWS)},
        {"a": [1, 2], "b": [1]},
        {"prompt": CHATS, "chosen": CHATS},
        {"prompt": {"0": "a"}, "chosen": {"1": "b"}},
        {"prompt": "a", "chosen": "b"},
        {"meta": {"a": 1}, "other": {"b": 1}},
        {},
    ],
)
def test_other_objects_are_errors(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match="exactly one list of records is expected"):
        rows_of(tmp_path, content)
