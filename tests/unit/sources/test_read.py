"""Reading files of every type: exact line numbers, no skipped rows, fingerprints, errors for missing files."""

from __future__ import annotations

import csv
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.sources.read import fingerprint, read

ROWS = [{"prompt": "a", "chosen": "b\u2028c", "rejected": "d"}, {"prompt": "é😀", "chosen": "1", "rejected": "2"}]


def values(path: Path) -> list[Any]:
    return [row.value for row in read(str(path))]


def lines(path: Path) -> list[int]:
    return [int(row.origin.rpartition(":")[2]) for row in read(str(path))]


def test_every_line_of_a_jsonl_file_is_read_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r, ensure_ascii=False).encode() for r in ROWS) + b"\r\n\r\n{}\n"
    )
    assert values(path) == [*ROWS, {}]
    assert lines(path) == [1, 2, 4]


def test_a_jsonl_gz_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert values(path) == ROWS


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"a": 1', "broken JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7 of the line"),
        (b"[1]", "a row must be an object with named fields, not list"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "broken JSON: an integer has more digits than Python reads"),
    ],
)
def test_a_broken_line_is_a_row_with_a_fault(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    rows = list(read(str(path)))
    assert [r.fault for r in rows] == ["", fault, ""]
    assert rows[1].origin == f"{path}:2"


def test_records_of_a_json_list_have_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    assert values(path) == ROWS
    assert lines(path) == [2, 7]


def test_the_only_list_in_a_json_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "meta": {"data": [1]}, "data": ROWS}, indent=1))
    assert values(path) == ROWS
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(
        DataError, match="the object has 2 lists: 'train', 'test'; exactly one list of records is expected"
    ):
        values(path)


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{"a": [{"b": 1}]}\n\n{"a": 2}\n{"a"}\n')
    rows = list(read(str(path)))
    assert [row.value for row in rows] == [{"a": [{"b": 1}]}, {"a": 2}, {}]
    assert [row.origin for row in rows] == [f"{path}:{line}" for line in (2, 4, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": ]', ":2: broken JSON"),
        ('[{"a": 1}\n{"a": 2}]', ":2: broken JSON: expected ',' or ']'"),
        ('[{"a": 1}', "broken JSON: expected ',' or ']'"),
        ('{"a": 1} {"a": 2}', "more text follows the first record"),
        ('[{"a": 1},\n{"a": ' + "1" * 5000 + ', "b": ]', ":2: broken JSON"),
        ('[{"a": 1},\n{"a": ' + "[" * 100_000, ":2: broken JSON: nested too deeply"),
        ('{"a": ' + "[" * 100_000, ":1: broken JSON: nested too deeply"),
        ('[{"a": 1}]\n[{"a": 2}]', ":2: more text follows the list of records"),
        ("3", "neither a list of records"),
        ("", "neither a list of records"),
    ],
)
def test_broken_json_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        values(path)
    assert message in str(error.value)


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3), max_size=5), st.integers(0, 2))
def test_rows_written_by_the_json_module_are_read_back(rows: list[dict[str, str]], indent: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(rows, indent=indent or None))
        assert values(path) == rows


def test_csv_cells_may_contain_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["prompt", "chosen", "rejected"], ["a\nb", "c\u2028", "d"], ["e", '[{"role": "user"}]', "[x]"]]
        )
    assert values(path) == [
        {"prompt": "a\nb", "chosen": "c\u2028", "rejected": "d"},
        {"prompt": "e", "chosen": '[{"role": "user"}]', "rejected": "[x]"},
    ]
    assert lines(path) == [2, 4]


def test_csv_rows_with_a_wrong_number_of_cells_have_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3\n4,5,6\n")
    assert [bool(r.fault) for r in read(str(path))] == [False, True, True]


def test_parquet_files_are_read_and_truncated_ones_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        values(path)


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"x": "{name}"}}\n')
    rows = list(read([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))
    assert [r.value["x"] for r in rows] == ["a.jsonl", "b.jsonl"]
    assert rows[1].origin.endswith("b.jsonl:1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jsonl", "contains other.txt"),
        ("no/thing.jsonl", "does not exist either"),
        ("other.txt", "unknown file type"),
    ],
)
def test_the_error_for_a_wrong_path_says_what_exists(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        values(tmp_path / name)


def test_the_fingerprint_of_a_file_depends_on_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1")
    first = fingerprint(str(path))
    path.write_text("2")
    assert fingerprint(str(path)) != first
    assert fingerprint([str(path)]) == fingerprint(str(path))


def test_the_fingerprint_of_a_folder_depends_on_names_and_bytes_of_the_split(tmp_path: Path) -> None:
    """The name of the folder and files of other splits have no effect."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "train-1.jsonl").write_text("1")
    (folder / "test.jsonl").write_text("1")
    first = fingerprint(str(folder))
    (folder / "test.jsonl").write_text("2")
    assert fingerprint(str(folder)) == first
    assert fingerprint(str(folder.rename(tmp_path / "b"))) == first
    folder = tmp_path / "b"
    (folder / "train-1.jsonl").write_text("2")
    changed = fingerprint(str(folder))
    (folder / "train-1.jsonl").rename(folder / "train-2.jsonl")
    assert len({first, changed, fingerprint(str(folder))}) == 3


def test_the_fingerprint_of_a_saved_dataset_depends_on_its_rows(tmp_path: Path) -> None:
    import datasets

    for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[::-1])):
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / name))
    a, b, c = (fingerprint(str(tmp_path / name)) for name in "abc")
    assert a == b
    assert a != c
    assert fingerprint(str(tmp_path / "a" / "train")) == a


def test_a_huge_integer_is_a_fault_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records = '[{"a": 1},\n{"a": ' + "1" * 5000 + '},\n{"a": 3}]'
    for text in (records, '{"n": ' + "1" * 5000 + f', "data": {records}}}'):
        path.write_text(text)
        rows = list(read(str(path)))
        assert [r.value for r in rows] == [{"a": 1}, {}, {"a": 3}]
        assert [r.fault for r in rows] == ["", "broken JSON: an integer has more digits than Python reads", ""]
        assert rows[1].origin == f"{path}:2"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    "raw", [bytes(range(256)) * 8, "{}".encode("utf-16") + b"\x00", b"\xff\xff\xff"], ids=["binary", "utf16", "ff"]
)
def test_binary_files_are_errors_that_name_the_file(tmp_path: Path, kind: str, raw: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        read_groups(str(path))
    assert f"a.{kind}" in str(error.value)
    with pytest.raises(DataError):  # no row remains
        read_groups(str(path), Reading(bad_rows="drop"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("jsonl", '{"a": "1"}'), ("json", '[{"a": "1"}]'), ("json", '{"d": [{"a": "1"}]}'), ("csv", "a\n1\n")],
)
def test_a_byte_order_mark_is_removed(tmp_path: Path, kind: str, text: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(text, encoding="utf-8-sig")
    assert values(path) == [{"a": "1"}]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("data/missing.jsonl", "data contains pairs.jsonl"),
        ("data/missing", "data contains other.txt, pairs.jsonl"),
        ("data/pears.jsonl", "data contains pairs.jsonl"),
        ("data/pairs:test", "data contains other.txt, pairs.jsonl"),
        ("./missing", ". contains data"),
        ("missing/missing.csv.gz", "the folder missing does not exist either"),
        ("missing/missing.PARQUET", "the folder missing does not exist either"),
        ("~/missing.jsonl", "home contains set"),
    ],
)
def test_a_missing_local_file_is_not_searched_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("{}")
    (tmp_path / "data" / "other.txt").write_text("")
    (tmp_path / "home" / "set").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("preftune.sources.locate.hub_source", lambda _: pytest.fail("contacted the Hub"))
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        list(read(name))
    assert time.monotonic() - start < 1
    assert f"{name}: no such file" in str(error.value)
    assert fix in str(error.value)


@pytest.mark.parametrize("name", ["", "  ", "x" * 5000])
def test_impossible_file_names_are_errors(name: str) -> None:
    with pytest.raises(DataError):
        list(read(name))


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    for name in ("~/d", "~/d:train"):
        assert [r.value for r in read(name)] == ROWS


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a.jsonl: the folder is empty"):
        values(tmp_path / "a.jsonl")


def test_records_on_the_same_line_have_different_origins(tmp_path: Path) -> None:
    path = tmp_path / "one_line.json"
    path.write_text('[{"a": 1}, {"a": 2},\n{"a": 3}, {"a": 4}]')
    origins = [row.origin.rpartition("/")[2] for row in read(str(path))]
    assert origins == [
        "one_line.json:1",
        "one_line.json:1 (record 2)",
        "one_line.json:2",
        "one_line.json:2 (record 4)",
    ]
