"""Lists of sources as arguments in Python."""

from __future__ import annotations

from pathlib import Path

from preftune.api.inputs import Held, data_name
from preftune.config.data import SourceConfig


def test_a_list_of_sources_may_have_sections_and_rows_in_memory() -> None:
    held = Held()
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    first, second, third = data_name(
        [Path("a.jsonl"), {"path": rows, "weight": 2}, SourceConfig(path="b")], "data", held
    )
    assert (first, third) == ("a.jsonl", {"path": "b"})
    assert second == {"path": next(iter(held)), "weight": 2}
    assert data_name([{"path": "x", "prompt": "y"}], "data", held) in held  # a row with a column `path`
