"""Atomic writes: a failed write leaves the old file, and a journal loses at most its last, incomplete line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune import files
from preftune.errors import RunError, StorageError
from preftune.files import (
    Journal,
    changed_files,
    hashes_of,
    read_sealed,
    sealed,
    set_aside,
    write_json,
    write_rows,
    write_text,
)

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


def test_every_flipped_bit_of_a_journal_is_noticed_or_changes_no_row(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    rows = [{"id": 1}, {"key": "a", "text": "the cat", "n": 3, "x": 0.5}, {"key": "b", "text": None}]
    with Journal(file) as journal:
        for row in rows:
            journal.add(row)
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            with Journal(file) as journal:
                kept = [{**row} for row in journal.rows]
        except RunError:
            continue
        # the name of the first checksum, or the end of the last line
        assert [{key: row.get(key) for key in ours} for row, ours in zip(kept, rows, strict=False)] == rows[: len(kept)]
        assert len(kept) >= len(rows) - 1


def test_rows_of_an_earlier_version_have_no_checksums(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text('{"key": 1}\n{"key": 2}\n')
    with Journal(file) as journal:
        assert journal.rows == [{"key": 1}, {"key": 2}]
        journal.add({"key": 3})
    with file.open("a") as raw:
        raw.write('{"key": 4}\n')
    with pytest.raises(RunError, match=r"journal\.jsonl:4: .*does not match its checksum"):
        Journal(file)


def test_a_changed_entry_of_a_sealed_object_is_an_error(tmp_path: Path) -> None:
    value = {"step": 3, "loss": float("inf"), "nested": {"2": [1, 2.5]}, "text": "\ud83d é", 7: None}
    path = tmp_path / "state.json"
    write_json(path, sealed(value))
    plain = {str(key): entry for key, entry in value.items()}
    assert read_sealed(path) == plain
    for before, after in (('"step": 3', '"step": 4'), ("2.5", "2.25"), ("é", "è"), ('"sha256": "', '"sha256": "0')):
        text = path.read_text()
        path.write_text(text.replace(before, after))
        assert path.read_text() != text
        with pytest.raises(ValueError, match="does not match its hash"):
            read_sealed(path)
        path.write_text(text)
    write_json(path, {"step": 3})
    assert read_sealed(path) == {"step": 3}  # of an earlier version
    for content in (b"[]", b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a JSON object|Expecting|not UTF-8"):
            read_sealed(path)


def test_a_damaged_file_is_set_aside_under_a_new_name(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "file").write_text(str(number))
        assert set_aside(tmp_path / "file") == tmp_path / f"file.damaged-{number}"
    assert (tmp_path / "file.damaged-1").read_text() == "1"


def test_changed_and_missing_files_of_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c/d", "skipped"):
        write_text(tmp_path / name, [name])
    hashes = hashes_of(tmp_path, ["skipped"])
    assert sorted(hashes) == ["a", "b", "c/d"]
    assert changed_files(tmp_path, hashes) == []
    (tmp_path / "a").unlink()
    (tmp_path / "c" / "d").write_text("other")
    assert changed_files(tmp_path, hashes) == ["a is missing", "c/d has changed"]


def test_a_file_is_hashed_again_only_if_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    reads: list[Path] = []
    read = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (reads.append(path), read(path))[1])
    path.write_bytes(b"one")
    monkeypatch.setattr(files, "RECENT_NS", 0)
    assert {files.digest(path) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert len(reads) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert files.digest(path) == hashlib.sha256(b"two").hexdigest()
    monkeypatch.setattr(files, "RECENT_NS", 10**12)  # a file that has just changed may change again unnoticed
    reads.clear()
    assert files.digest(path) == files.digest(path)
    assert len(reads) == 2


def test_a_journal_on_a_full_disk_has_no_part_of_a_row(tmp_path: Path) -> None:
    """The error of the disk is raised once, and the journal can be closed and read."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from preftune.errors import StorageError\n"
        "from preftune.files import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    with Journal(Path(sys.argv[1])) as journal:\n"
        "        journal.add({'a': 'x' * 40})\n"
        "        journal.add({'a': 'y' * 60})\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "j.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: the path cannot be written")
    with Journal(path) as journal:
        assert journal.rows == [{"a": "x" * 40}]
        assert journal.removed == 0
