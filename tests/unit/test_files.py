"""Atomic writes: a failed write leaves the old file, and a journal loses at most its last, incomplete line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import StorageError
from preftune.files import Journal, write_json, write_rows, write_text

ROWS = [{"text": "two\u2028lines"}, {"text": "\n"}, "1é2"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def chunks() -> object:
        yield "new"
        raise KeyboardInterrupt

    file = tmp_path / "deep" / "file.txt"
    write_text(file, ["old"])
    with pytest.raises(KeyboardInterrupt):
        write_text(file, chunks())  # type: ignore[arg-type]
    assert file.read_text() == "old"


def test_a_folder_in_place_of_the_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_rows(tmp_path / "file", ROWS)


@pytest.mark.parametrize("missing_bytes", range(1, 12))
def test_a_truncated_journal_keeps_its_complete_lines(tmp_path: Path, missing_bytes: int) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        for row in ROWS:
            journal.add(row)
    file.write_bytes(file.read_bytes()[:-missing_bytes])
    with Journal(file) as journal:
        assert journal.rows == ROWS[: 2 if missing_bytes < 8 else 1]
        complete = list(journal.rows)
        journal.add("next")
    with Journal(file) as journal:
        assert journal.rows == [*complete, "next"]


def test_a_lone_surrogate_is_written_as_an_escape_and_read_back(tmp_path: Path) -> None:
    row = {"text": 'a\\\ud83d"\udc00é'}
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add(row)
        journal.add("next")
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.rows == [row, "next"]
    write_rows(tmp_path / "rows.jsonl", [row])
    write_json(tmp_path / "row.json", row)
    for name in ("rows.jsonl", "row.json"):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == row
