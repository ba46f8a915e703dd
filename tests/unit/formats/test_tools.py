"""The column `tools`, and dialogues whose last several messages are the response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.prompts import read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.types import Message, PreferenceGroup, split_tools

FUNCTION = {"name": "tide", "description": "Tides", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


U, A, B = ("user", "guess"), ("assistant", "a"), ("assistant", "b")
PAIR = {"prompt": chat(U), "chosen": chat(A), "rejected": chat(B)}


def read_one(tmp_path: Path, row: dict[str, Any], **reading: Any) -> PreferenceGroup:
    groups, account = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])), Reading(**reading))
    assert not account.dropped, account.dropped
    (group,) = groups
    return group


@pytest.mark.parametrize("value", [[TOOL], [FUNCTION], json.dumps([TOOL]), json.dumps(FUNCTION), [json.dumps(TOOL)]])
@pytest.mark.parametrize("column", ["tools", "functions", "Tools"])
def test_tools_are_read_in_every_form(tmp_path: Path, column: str, value: Any) -> None:
    group = read_one(tmp_path, {**PAIR, column: value})
    messages, tools = split_tools(group.prompt)  # type: ignore[arg-type]
    assert tools == [TOOL]
    assert messages == (Message("user", "guess"),)


def test_a_text_row_with_tools_becomes_a_chat(tmp_path: Path) -> None:
    group = read_one(tmp_path, {"prompt": "guess", "chosen": "a", "rejected": "b", "tools": [TOOL]})
    assert split_tools(group.prompt) == ((Message("user", "guess"),), [TOOL])  # type: ignore[arg-type]
    assert group.responses == ((Message("assistant", "a"),), (Message("assistant", "b"),))


def test_openai_rows_have_their_tools_in_the_input(tmp_path: Path) -> None:
    row = {
        "input": {"messages": chat(U), "tools": [TOOL]},
        "preferred_output": chat(A),
        "non_preferred_output": chat(B),
    }
    assert split_tools(read_one(tmp_path, row).prompt)[1] == [TOOL]  # type: ignore[arg-type]


def test_prompts_keep_their_tools(tmp_path: Path) -> None:
    (group,), _ = read_prompts(str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "guess", "tools": [TOOL]}])))
    assert split_tools(group.prompt)[1] == [TOOL]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["not JSON", [{"of": "x"}], [5], "5", [["tide"]]])
def test_other_tools_are_an_error_that_names_the_column(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match="column 'tools' must") as error:
        read_one(tmp_path, {**PAIR, "tools": value})
    assert "data.ignore=[tools]" in error.value.fix


LONG = [[A, ("user", "no"), ("assistant", "c")], [A, ("user", "no"), ("assistant", "d")]]
ROWS = {
    "prompt and messages": {"prompt": chat(U), "chosen": chat(*LONG[0]), "rejected": chat(*LONG[1])},
    "prompt and dialogues": {"prompt": chat(U), "chosen": chat(U, *LONG[0]), "rejected": chat(U, *LONG[1])},
    "text prompt": {"prompt": "guess", "chosen": chat(*LONG[0]), "rejected": chat(*LONG[1])},
    "groups": {
        "prompt": chat(U),
        "responses": [chat(*LONG[0]), chat(*LONG[1])],
        "judgements": [{"better": 0, "worse": 1}],
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_response_may_have_several_messages(tmp_path: Path, name: str) -> None:
    group = read_one(tmp_path, ROWS[name])
    assert group.prompt == (Message("user", "guess"),)
    assert [[m.content for m in response] for response in group.responses] == [["a", "no", "c"], ["a", "no", "d"]]  # type: ignore[union-attr]


def test_dialogues_that_diverge_in_the_middle_share_the_turns_before(tmp_path: Path) -> None:
    first, second = [A, ("user", "x"), ("assistant", "y")], [B, ("user", "x"), ("assistant", "z")]
    head = [("system", "s"), U, ("assistant", "hm"), ("user", "go")]
    for row in (
        {"chosen": chat(*head, *first), "rejected": chat(*head, *second)},
        {"messages": chat(*head, *first), "rejected_messages": chat(*head, *second)},
        {"conversation_a": chat(*head, *first), "conversation_b": chat(*head, *second), "winner": "model_a"},
    ):
        group = read_one(tmp_path, row)
        assert [m.content for m in group.prompt] == ["s", "guess", "hm", "go"]  # type: ignore[union-attr]
        assert [len(response) for response in group.responses] == [3, 3]


def test_a_different_tool_result_is_part_of_the_responses(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "tide", "arguments": {}}}]}
    sides = [[*chat(U), call, *chat(("tool", t), ("assistant", f"at {t}"))] for t in "78"]
    group = read_one(tmp_path, {"chosen": sides[0], "rejected": sides[1], "tools": [TOOL]})
    assert [m.role for m in group.responses[0]] == ["assistant", "tool", "assistant"]  # type: ignore[union-attr]


def test_demonstrations_of_the_last_turn_only(tmp_path: Path) -> None:
    row = {"messages": chat(U, A, ("user", "no"), B)}
    path = str(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert len(read_groups(path)[0]) == 2
    (group,) = read_groups(path, Reading(scored_turns="last"))[0]
    assert group.responses == ((Message("assistant", "b"),),)
