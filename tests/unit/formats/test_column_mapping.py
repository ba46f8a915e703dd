"""data.columns renames columns before the format is detected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.formats.examples import PAIR_ROW, read_rows

from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError
from preftune.formats.parsers import Reading
from preftune.types import PreferenceGroup


def test_columns_are_renamed_before_the_format_is_detected(tmp_path: Path) -> None:
    rows = [{"q": "Say it.", "good": "good words", "bad": "bad words", "id": 3}]
    groups, account = read_rows(tmp_path, rows, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert groups == [
        PreferenceGroup(
            "Say it.",
            ("good words", "bad words"),
            groups[0].judgements,
            origin=groups[0].origin,
        )
    ]
    assert account.columns == {
        "q": "used as prompt",
        "good": "used as chosen",
        "bad": "used as rejected",
        "id": "metadata",
    }


def test_two_columns_can_swap_their_names(tmp_path: Path) -> None:
    groups, _ = read_rows(tmp_path, [PAIR_ROW], columns={"chosen": "rejected", "rejected": "chosen"})
    assert groups[0].responses == ("bad words", "good words")


def test_an_invalid_mapping_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown name 'promt'(.|\n)*did you mean 'prompt'"):
        read_rows(tmp_path, [PAIR_ROW], columns={"promt": "question"})
    with pytest.raises(DataError, match=r"'prompt' from 'questoin', which no row has(.|\n)*mean 'question'"):
        read_rows(tmp_path, [{"question": "q", "chosen": "a", "rejected": "b"}], columns={"prompt": "questoin"})
    for column in ("nothere", "nothere.text"):  # the rows have a column `prompt`, which is not the one that was named
        with pytest.raises(DataError, match=f"'prompt' from '{column}', which no row has"):
            read_rows(tmp_path, [PAIR_ROW], columns={"prompt": column})
    with pytest.raises(ConfigError, match="column 'x' has two names"):
        read_rows(tmp_path, [PAIR_ROW], columns={"prompt": "x", "chosen": "x"})
    with pytest.raises(DataError, match="a different column the name 'prompt', which the row already has"):
        read_rows(tmp_path, [{**PAIR_ROW, "question": "q"}], columns={"prompt": "question"})
    groups, _ = read_rows(tmp_path, [{**PAIR_ROW, "question": "q"}], columns={"prompt": "question"}, ignore=("prompt",))
    assert groups[0].prompt == "q"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_columns_are_mapped_in_files_of_every_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    row = {"q": "Say it.", "good": "good words", "bad": "bad words"}
    if kind == "csv":
        path.write_text("q,good,bad\nSay it.,good words,bad words\n")
    elif kind == "json":
        path.write_text(json.dumps([row]))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    groups, _ = read_groups(str(path), Reading(columns={"prompt": "q", "chosen": "good", "rejected": "bad"}))
    assert (groups[0].prompt, groups[0].responses) == ("Say it.", ("good words", "bad words"))
