"""Files to rows: every kind of file, exact line numbers, nothing skipped."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.read import fingerprint, read
from preftune.errors import DataError

ROWS = [{"prompt": "a", "chosen": "b\u2028c", "rejected": "d"}, {"prompt": "é😀", "chosen": "1", "rejected": "2"}]


def values(path: Path) -> list[Any]:
    return [row.value for row in read(str(path))]


def lines(path: Path) -> list[int]:
    return [int(row.origin.rpartition(":")[2]) for row in read(str(path))]


def test_jsonl_keeps_every_line_and_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r, ensure_ascii=False).encode() for r in ROWS) + b"\r\n\r\n{}\n"
    )
    assert values(path) == [*ROWS, {}]
    assert lines(path) == [1, 2, 4]


def test_jsonl_gz(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert values(path) == ROWS


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"a": 1', "broken JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7 of the line"),
        (b"[1]", "a row is an object with named fields, not list"),
        (b"[" * 100_000, "broken JSON: too deep"),
    ],
)
def test_a_broken_line_is_a_row_with_a_fault(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    rows = list(read(str(path)))
    assert [r.fault for r in rows] == ["", fault, ""]
    assert rows[1].origin == f"{path}:2"


def test_json_list_has_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    assert values(path) == ROWS
    assert lines(path) == [2, 7]
    path.write_text(json.dumps(ROWS))
    assert lines(path) == [1, 1]


def test_json_object_around_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "meta": {"data": [1]}, "data": ROWS}, indent=1))
    assert values(path) == ROWS
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match=r"expected one list of records, found \['train', 'test'\]"):
        values(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": ]', ":2: broken JSON"),
        ('[{"a": 1}\n{"a": 2}]', ":2: broken JSON: expected ',' or ']'"),
        ('[{"a": 1}', "broken JSON: expected ',' or ']'"),
        ('{"a": 1}\n{"a": 2}', "more text after the first record"),
        ("3", "neither a list of records"),
        ("", "neither a list of records"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        values(path)
    assert message in str(error.value)


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3), max_size=5), st.integers(0, 2))
def test_json_reads_what_json_wrote(rows: list[dict[str, str]], indent: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(rows, indent=indent or None))
        assert values(path) == rows


def test_csv_with_line_breaks_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["prompt", "chosen", "rejected"], ["a\nb", "c\u2028", "d"], ["e", '[{"role": "user"}]', "[x]"]]
        )
    assert values(path) == [
        {"prompt": "a\nb", "chosen": "c\u2028", "rejected": "d"},
        {"prompt": "e", "chosen": [{"role": "user"}], "rejected": "[x]"},
    ]
    assert lines(path) == [2, 4]


def test_csv_with_a_missing_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3\n4,5,6\n")
    assert [bool(r.fault) for r in read(str(path))] == [False, True, True]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        values(path)


def test_a_dataset_folder_is_loaded_by_datasets(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    rows = list(read(str(tmp_path / "d")))
    assert [r.value for r in rows] == ROWS
    with pytest.raises(DataError, match="cannot load dataset"):
        list(read(f"{tmp_path / 'd'}:validation"))


def test_a_saved_dataset_and_its_split(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    assert [r.value for r in read(str(tmp_path / "one"))] == ROWS
    datasets.DatasetDict({"train": saved, "test_prefs": saved.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert [r.value for r in read(f"{tmp_path / 'two'}:test_prefs")] == ROWS[1:]


def test_a_hub_id_without_network_is_refused_with_advice() -> None:
    with pytest.raises(DataError, match="org/name:split"):
        list(read("somebody/nothing"))


def test_several_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"x": "{name}"}}\n')
    rows = list(read([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))
    assert [r.value["x"] for r in rows] == ["a.jsonl", "b.jsonl"]
    assert rows[1].origin.endswith("b.jsonl:1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jsonl", "in .* there is: other.txt"),
        ("no/thing.jsonl", "does not exist either"),
        ("other.txt", "unknown file type"),
    ],
)
def test_what_is_not_a_data_file(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        values(tmp_path / name)


def test_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1")
    first = fingerprint(str(path))
    path.write_text("2")
    assert fingerprint(str(path)) != first
    assert fingerprint([str(path)]) == fingerprint(str(path))
