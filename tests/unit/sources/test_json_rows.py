"""JSON lists are read in parts. Duplicate keys in JSON objects are errors."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

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
    text = "{" + ", ".join(f"{json.dumps(key)}: {i}" for i, key in enumerate(keys)) + "}"
    if len(set(keys)) == len(keys):
        assert loads(text) == {key: i for i, key in enumerate(keys)}
    else:
        with pytest.raises(DuplicateKeyError):
            loads(text)


RECORDS = st.lists(
    st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=9), st.none()), max_size=3),
    max_size=6,
)


@given(records=RECORDS, part=st.integers(1, 40), indent=st.sampled_from([None, 2]), bom=st.booleans())
def test_a_list_read_in_parts_has_the_same_rows_and_lines(
    records: list[dict[str, Any]], part: int, indent: int | None, bom: bool
) -> None:
    text = json.dumps(records, ensure_ascii=False, indent=indent)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.json"
        path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
        whole = list(read(str(path)))
        patch.setattr("preftune.sources.json_rows.PART_BYTES", part)
        assert list(read(str(path))) == whole
    assert [row.value for row in whole] == records


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_the_first_rows_come_before_the_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    first, more = ('[{"a": "1"}', ',\n{"a": "2"}') if suffix == ".json" else ("a\n1", "\n2")
    path.write_bytes((first + more * 400_000).encode() + b"\xff")
    rows = read(str(path))
    assert next(rows).value == {"a": "1"}
    with pytest.raises(DataError, match=f"{suffix}:{400_001 + (suffix == '.csv')}: not UTF-8 at byte"):
        list(rows)


def test_only_a_part_of_a_list_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = json.dumps({"text": "x" * 1000})
    path.write_text("[" + ",\n".join([record] * 20_000) + "]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read(str(path))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()
