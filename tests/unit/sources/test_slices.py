"""Slices of a source select the rows that `datasets` would select."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from tests.conftest import write_jsonl

from preftune.errors import DataError
from preftune.sources.read import fingerprint, read
from preftune.sources.slices import Slice, split_slice

SLICES = ["[:3]", "[-2:]", "[:-1]", "[50%:]", "[:30%]", "[15%:85%]", "[-10%:]", "[:]", "[1:]", "[:100%]", "[3:99]"]


@pytest.mark.parametrize("number", [7, 10, 13])
@pytest.mark.parametrize("text", SLICES)
def test_slices_are_those_of_datasets(tmp_path: Path, text: str, number: int) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"x": i} for i in range(number)])
    instruction = datasets.ReadInstruction.from_spec(f"train{text}")
    (absolute,) = instruction.to_absolute({"train": number})
    expected = list(range(number))[absolute.from_ or 0 : number if absolute.to is None else absolute.to]
    try:
        rows = [row.value["x"] for row in read(f"{file}{text}")]
    except DataError:
        rows = []
    assert rows == expected


def test_origins_keep_their_lines_and_the_content_keeps_its_hash(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"x": i} for i in range(5)])
    assert [row.origin for row in read(f"{file}[3:]")] == [f"{file}:4", f"{file}:5"]
    assert fingerprint(f"{file}[3:]") == fingerprint(str(file))


def test_a_file_may_have_the_name_of_a_slice(tmp_path: Path) -> None:
    name = str(write_jsonl(tmp_path / "rows.jsonl[:2]", [{"x": 1}]))
    assert split_slice(name) == (name, None)


@pytest.mark.parametrize(
    ("name", "base", "part"),
    [
        ("org/name:train[:10]@main", "org/name:train@main", Slice("", "10")),
        ("org/name:train@v1.0[5%:]", "org/name:train@v1.0", Slice("5%", "")),
        ("data/[ab]*.jsonl[:4]", "data/[ab]*.jsonl", Slice("", "4")),
        ("data/[ab].jsonl", "data/[ab].jsonl", None),
    ],
)
def test_names_with_and_without_a_slice(name: str, base: str, part: Slice | None) -> None:
    assert split_slice(name) == (base, part)


@pytest.mark.parametrize(("text", "message"), [("[5:2]", "has no rows"), ("[:101%]", "not between 0% and 100%")])
def test_slices_that_select_nothing_are_errors(tmp_path: Path, text: str, message: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"x": 1}])
    with pytest.raises(DataError, match=message):
        list(read(f"{file}{text}"))
