"""Rows of a stream are read as the same rows of a file."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import write_jsonl

from preftune.data.read_groups import read_groups
from preftune.formats.account import Account
from preftune.formats.parsers import Reading
from preftune.lifecycle.streamed_rows import StreamedRows
from preftune.sources.parts import parts_of


def test_tasks_of_a_label_tool_can_be_streamed(tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "data": {"prompt": f"p {i}", "answer1": "x", "answer2": "y"},
            "annotations": [{"result": [{"type": "pairwise", "value": {"selected": ("left", "right")[i % 2]}}]}],
        }
        for i in range(120)  # more than the rows from which the format is detected
    ]
    path = str(write_jsonl(tmp_path / "tasks.jsonl", rows))
    parts = parts_of(path)
    account = Account(path)
    groups = StreamedRows(parts, Reading(), set()).groups(list(parts.rows()), account)
    assert groups == read_groups(path)[0]
    assert (account.read, account.dropped) == (120, {})
