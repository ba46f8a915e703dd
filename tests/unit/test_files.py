"""Files are whole or not there; a journal loses at most the line that was being written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import StorageError
from preftune.files import Journal, write_json, write_rows, write_text

ROWS = [{"text": "two\u2028lines"}, {"text": "\n"}, "1é2"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def rows() -> object:
        yield "new"
        raise KeyboardInterrupt

    file = tmp_path / "deep" / "file.txt"
    write_text(file, ["old"])
    with pytest.raises(KeyboardInterrupt):
        write_text(file, rows())  # type: ignore[arg-type]
    assert file.read_text() == "old"


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_rows(tmp_path / "file", ROWS)


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_journal_cut_anywhere_keeps_its_whole_lines(tmp_path: Path, lost: int) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        for row in ROWS:
            journal.add(row)
    file.write_bytes(file.read_bytes()[:-lost])
    with Journal(file) as journal:
        assert journal.rows == ROWS[: 2 if lost < 8 else 1]
        kept = list(journal.rows)
        journal.add("next")
    with Journal(file) as journal:
        assert journal.rows == [*kept, "next"]


def test_half_a_character_is_kept(tmp_path: Path) -> None:
    """A lone surrogate has no UTF-8; it goes to disk as JSON writes it, and comes back."""
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
