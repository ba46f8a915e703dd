"""Tables: sequences of dicts with access by column."""

from __future__ import annotations

import sys

import pytest

from preftune.api.results import Table
from preftune.errors import ConfigError

ROWS = (
    {"step": 1, "split": "train", "loss": 0.7},
    {"step": 1, "split": "eval"},
    {"step": 2, "split": "train", "lr": 1},
)


def test_a_table_is_a_sequence_of_rows_with_columns() -> None:
    table = Table(ROWS)
    assert list(table) == list(ROWS)
    assert (table[0], table[-1], table[1:].rows) == (ROWS[0], ROWS[-1], ROWS[1:])
    assert table.columns == ("step", "split", "loss", "lr")
    assert table["loss"] == [0.7, None, None]
    assert table.only(split="train").rows == (ROWS[0], ROWS[2])
    assert table.table(split="train") == {"step": [1, 2], "split": ["train"] * 2, "loss": [0.7, None], "lr": [None, 1]}
    with pytest.raises(KeyError, match="no column 'los'; columns: step, split, loss, lr"):
        table["los"]


def test_the_repr_shows_the_first_rows() -> None:
    assert repr(Table(())) == "0 rows with no columns"
    assert len(repr(Table(ROWS * 10)).splitlines()) == 7
    assert "... 25 more" in repr(Table(ROWS * 10))


def test_to_pandas_without_pandas_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Table(ROWS).to_pandas()["step"]) == [1, 1, 2]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        Table(ROWS).to_pandas()
