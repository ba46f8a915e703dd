"""Duplicate keys in JSON objects are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.sources.json_rows import DuplicateKeyError, loads
from preftune.sources.read import read

NESTED = [
    '{"a": 1, "a": 1}',
    '{"b": 0, "a": 1, "c": {}, "a": 2}',
    '{"m": {"a": 1, "a": 2}}',
    '{"m": [{"x": 0}, {"a": 1, "a": 2}]}',
    '{"a": {"b": 1}, "\\u0061": 2}',
]


@pytest.mark.parametrize("text", NESTED)
def test_a_duplicate_key_is_a_fault_of_its_row(tmp_path: Path, text: str) -> None:
    lines, whole, wrapped = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "b.json"
    lines.write_text(f'{{"x": 1}}\n{text}\n{{"x": 3}}\n')
    whole.write_text(f'[{{"x": 1}},\n{text},\n{{"x": 3}}]')
    wrapped.write_text(f'{{"data": [{{"x": 1}},\n{text},\n{{"x": 3}}]}}')
    for path in (lines, whole, wrapped):
        rows = list(read(str(path)))
        assert [row.value for row in rows] == [{"x": 1}, {}, {"x": 3}]
        assert [row.fault for row in rows] == ["", "key 'a' appears twice", ""]
        assert rows[1].origin == f"{path}:2"


def test_the_error_names_the_row_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = '{"prompt": "p", "chosen": "c", "rejected": "r"}'
    path.write_text(f'{row}\n{row[:-1]}, "chosen": "old"}}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: key 'chosen' appears twice"):
        read_groups(str(path))


def test_two_lists_with_the_same_key_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": [{"x": 1}],\n"data": [{"x": 2}]}')
    with pytest.raises(DataError, match=r"a.json:2: key 'data' appears twice"):
        list(read(str(path)))


@given(st.lists(st.text(max_size=2), max_size=5))
def test_only_objects_with_duplicate_keys_are_rejected(keys: list[str]) -> None:
    import json

    text = "{" + ", ".join(f"{json.dumps(key)}: {i}" for i, key in enumerate(keys)) + "}"
    if len(set(keys)) == len(keys):
        assert loads(text) == {key: i for i, key in enumerate(keys)}
    else:
        with pytest.raises(DuplicateKeyError):
            loads(text)
