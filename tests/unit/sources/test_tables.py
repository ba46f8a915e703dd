"""CSV, TSV, Parquet and Arrow: CSV cells are text, lines are exact, duplicate columns are errors."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import DataError
from preftune.sources.read import read


def rows_of(path: Path) -> list[Any]:
    return [row.value for row in read(str(path))]


@pytest.mark.parametrize("cell", ['{"thing": "the sea"}', "[1, 2]", '["a", "b"]', "[" * 100_000 + "]", "1", "null"])
def test_a_csv_cell_is_text(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["x", cell]])
    assert rows_of(path) == [{"a": "x", "b": cell}]


def test_tab_separated_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('a\tb\n1,5\t"two\tparts"\n\n2\t3\n')
    rows = list(read(str(path)))
    assert [row.value for row in rows] == [{"a": "1,5", "b": "two\tparts"}, {"a": "2", "b": "3"}]
    assert [row.origin for row in rows] == [f"{path}:2", f"{path}:4"]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=6)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=4))
def test_the_line_of_a_csv_record_is_its_first_line(records: list[list[str]]) -> None:
    import tempfile

    text, begins = "a,b\n", []
    for record in records:
        begins.append(text.count("\n") + 1)
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(record)
        text += line.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(text.encode())
        rows = list(read(str(path)))
    assert [[row.value["a"], row.value["b"]] for row in rows] == records
    assert [int(row.origin.rpartition(":")[2]) for row in rows] == begins


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("prompt,chosen,rejected,chosen", r"1: column 'chosen' appears twice"),
        ("a,a", r"1: column 'a' appears twice"),
        ("\n\na,a", r"3: column 'a' appears twice"),
        (",prompt", r"1: column 1 of 2 has no name\n  fix: give the column a name, or remove it \(if"),
        ("prompt, ,b", r"1: column 2 of 3 has no name"),
        ("prompt,b,", r"1: column 3 of 3 has no name"),
    ],
)
def test_a_header_with_a_missing_or_duplicate_name_is_an_error(tmp_path: Path, header: str, message: str) -> None:
    for suffix, text in ((".csv", header), (".tsv", header.replace(",", "\t"))):
        path = tmp_path / f"a{suffix}"
        path.write_text(f"{text}\n1,2\n")
        with pytest.raises(DataError, match=f"a{suffix}:{message}"):
            rows_of(path)


def tables() -> dict[str, pa.Table]:
    text, pair = pa.array(["x"]), [pa.field("role", pa.string())] * 2
    message = pa.array([None], pa.struct(pair))
    return {
        "chosen": pa.Table.from_arrays([text, text, text], names=["chosen", "b", "chosen"]),
        "m.role": pa.Table.from_arrays([message], names=["m"]),
        "m.role ": pa.Table.from_arrays([pa.array([None], pa.list_(pa.struct(pair)))], names=["m"]),
        "m.x.role": pa.Table.from_arrays(
            [pa.array([None], pa.struct([("x", pa.large_list(message.type))]))], names=["m"]
        ),
        "m.role  ": pa.Table.from_arrays([pa.array([None], pa.map_(pa.string(), message.type))], names=["m"]),
    }


@pytest.mark.parametrize("column", tables())
def test_a_duplicate_column_or_field_is_an_error(tmp_path: Path, column: str) -> None:
    pyarrow.parquet.write_table(tables()[column], tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, tables()[column].schema) as stream:
        stream.write_table(tables()[column])
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match=rf"{name}: column '{column.strip()}' appears twice"):
            rows_of(tmp_path / name)


def test_fields_of_different_structs_may_have_the_same_name(tmp_path: Path) -> None:
    row = {"a": {"a": 1, "b": [{"a": "x"}]}, "b": [{"a": None}]}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [row]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_streams_and_files_are_read(tmp_path: Path, kind: str) -> None:
    rows = [{"a": [{"role": "user", "content": "é"}]}, {"a": None}]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "a.arrow"
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert rows_of(path) == rows
    assert [row.origin for row in read(str(path))] == [f"{path}:1", f"{path}:2"]
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a readable Arrow file"):
        rows_of(path)


def test_arrow_json_columns_are_decoded(tmp_path: Path) -> None:
    """`datasets` stores values of mixed types as Arrow's JSON type."""
    import datasets

    rows = [{"a": [{"x": 1}, {"y": "2"}], "b": "t"}, {"a": None, "b": "u"}]
    features = datasets.Features({"a": datasets.List(datasets.Json()), "b": datasets.Value("string")})
    made = datasets.Dataset.from_dict({key: [row[key] for row in rows] for key in "ab"}, features=features)
    made.to_parquet(str(tmp_path / "a.parquet"))
    assert rows_of(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_columns_may_be_separated_by_another_character_than_the_suffix_says(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'"prompt"{separator}chosen\n"a, b"{separator}"c{separator}d"\n')
    assert rows_of(path) == [{"prompt": "a, b", "chosen": f"c{separator}d"}]
    path.with_suffix(".tsv").write_text("prompt;chosen\na;b\n")
    assert rows_of(path.with_suffix(".tsv")) == [{"prompt": "a", "chosen": "b"}]


def test_a_header_with_two_possible_separators_is_an_error_that_names_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt;chosen|rejected\n")
    with pytest.raises(DataError, match="separated by semicolons"):
        rows_of(path)
    path.write_text("prompt;prompt\n")  # twice the same column
    with pytest.raises(DataError, match="separated by semicolons"):
        rows_of(path)


def test_a_comma_in_a_header_of_commas_stays_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,a;b\n1,2\n")
    assert rows_of(path) == [{"prompt": "1", "a;b": "2"}]


def test_the_first_line_of_excel_names_the_separator_and_is_not_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffsep=;\r\nprompt;chosen\r\na;b\r\nc\r\n", newline="")
    rows = list(read(str(path)))
    assert [row.value for row in rows] == [{"prompt": "a", "chosen": "b"}, {}]
    assert [row.origin for row in rows] == [f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffprompt\tchosen\r\nwo\tüñ\u2028語\r\n".encode(encoding))
    assert rows_of(path) == [{"prompt": "wo", "chosen": "üñ\u2028語"}]
    for name, text in (("a.jsonl", '{"a": "ü"}\n{"a": "語"}\n'), ("a.json", '[{"a": "ü"},\n {"a": "語"}]')):
        path = tmp_path / name
        path.write_bytes(("\ufeff" + text).encode(encoding))
        assert rows_of(path) == [{"a": "ü"}, {"a": "語"}]


def test_damaged_utf_16_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff{}\n".encode("utf-16-le") + b"\x00")
    with pytest.raises(DataError, match="marked as UTF-16, but it is damaged at byte 8"):
        rows_of(path)
