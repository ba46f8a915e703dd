"""Empty prompts, prompts with a system text, and prompts that the responses repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import PAIR_ROW, A, S, U, chat, read_rows

from preftune.data.read_groups import read_groups
from preftune.errors import DataError


def test_empty_prompts_are_an_error_unless_allowed(tmp_path: Path) -> None:
    rows = [{"chosen": "so it is", "rejected": "no"}] * 3
    with pytest.raises(DataError, match="the prompt is empty in 3 of 3 rows"):
        read_rows(tmp_path, rows)
    for setting in ({"allow_empty_prompts": True}, {"format": "preference-implicit"}):
        assert len(read_rows(tmp_path, rows, **setting)[0]) == 3
    assert len(read_rows(tmp_path, [{"text": "once"}])[0]) == 1
    with pytest.raises(DataError, match=r"empty in 2 of 3(.|\n)*not used: 'source'"):
        read_rows(tmp_path, [{**PAIR_ROW, "prompt": "", "source": "s"}] * 2 + [PAIR_ROW])
    assert len(read_rows(tmp_path, [{**PAIR_ROW, "prompt": ""}, PAIR_ROW])[0]) == 2


def test_a_few_empty_prompts_are_noted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIR_ROW, {**PAIR_ROW, "prompt": ""}])
    assert read_groups(str(path))[1].noted == {"the prompt is empty": [f"{path}:2"]}


def test_responses_that_repeat_the_prompt_are_noted(tmp_path: Path) -> None:
    rows = [{"prompt": "Say it.", "chosen": "Say it. Good", "rejected": "Say it. Bad"}, PAIR_ROW]
    _, account = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert [origins for what, origins in account.noted.items() if "begin with the prompt" in what] == [
        [f"{tmp_path / 'rows.jsonl'}:1"]
    ]


def test_a_system_text_in_one_row_converts_all_prompts_to_chats(tmp_path: Path) -> None:
    rows = [{**PAIR_ROW, "system": ""}, {**PAIR_ROW, "system": "Be kind."}]
    groups, account = read_rows(tmp_path, rows)
    assert [group.prompt for group in groups] == [(U("Say it."),), (S("Be kind."), U("Say it."))]
    assert [group.responses[0] for group in groups] == [(A("good words"),)] * 2
    [(note, origins)] = account.noted.items()
    assert "converted to a chat" in note
    assert origins == [f"{tmp_path / 'rows.jsonl'}:1"]
    assert read_rows(tmp_path, rows[:1])[0][0].prompt == "Say it."


def test_two_different_system_texts_are_an_error(tmp_path: Path) -> None:
    row = {**PAIR_ROW, "prompt": chat(("system", "a"), ("user", "x")), "system": "b"}
    with pytest.raises(DataError, match="the system column differs from the system message of the prompt"):
        read_rows(tmp_path, [row])
    assert read_rows(tmp_path, [{**row, "system": "a"}])[0][0].prompt == (S("a"), U("x"))
