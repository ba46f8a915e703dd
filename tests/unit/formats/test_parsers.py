"""Each format parses its rows into the expected groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import EXAMPLE_ROWS, EXAMPLES, A, U, chat

from preftune.data.read_groups import read_groups
from preftune.formats.parsers import Reading, judgements_from_scores
from preftune.formats.registry import BY_NAME, FORMATS, detect
from preftune.formats.values import BadRow, Drop, drop_empty_responses, message_of
from preftune.types import Message, PreferenceGroup, as_json


@pytest.mark.parametrize(("name", "row", "group"), EXAMPLES, ids=[f"{i}-{r[0]}" for i, r in enumerate(EXAMPLES)])
def test_an_example_row_is_detected_and_parsed(name: str, row: dict[str, Any], group: PreferenceGroup) -> None:
    assert detect([row], "here").name == name
    assert list(BY_NAME[name].parse(row, Reading())) == [group]


def test_every_format_has_an_example_row() -> None:
    only_by_name = {"ordered"}  # no row shows that its list is in order
    assert {row[0] for row in EXAMPLES} | only_by_name == {f.name for f in FORMATS}


TOOL_CALL = {"type": "function", "function": {"name": "w", "arguments": {"town": 1}}}


def test_other_fields_of_a_message_are_stored_as_json() -> None:
    row = {
        "prompt": [
            {"role": "user", "content": "hi", "name": "Ann", "from": None, "tool_calls": []},
            {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
            {"role": "observation", "tool_call_id": "1", "content": "21 C"},
        ],
        "chosen": [{"role": "assistant", "content": "a", "reasoning_content": "Größe"}],
        "rejected": [{"role": "assistant", "content": "a", "reasoning_content": "other"}],
    }
    [group] = BY_NAME["chat"].parse(row, Reading())
    assert isinstance(group.prompt, tuple)
    assert [m.extra for m in group.prompt] == [
        (("name", '"Ann"'),),
        (("tool_calls", json.dumps([TOOL_CALL])),),
        (("tool_call_id", '"1"'),),
    ]
    assert [(m.role, m.content) for m in group.prompt] == [("user", "hi"), ("assistant", ""), ("tool", "21 C")]
    assert group.responses[0] == (Message("assistant", "a", (("reasoning_content", '"Größe"'),)),)
    assert as_json(group.prompt)[1] == {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}


def test_a_response_with_only_a_tool_call_or_reasoning_is_not_empty() -> None:
    chosen = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    rejected = {"role": "assistant", "content": "", "thinking": "hm"}
    [group] = BY_NAME["chat"].parse({"prompt": chat(("user", "x")), "chosen": chosen, "rejected": rejected}, Reading())
    assert drop_empty_responses(group) == group
    same = {"prompt": chat(("user", "x")), "chosen": {**chosen, "id": 1}, "rejected": {**chosen, "id": 2}}
    with pytest.raises(Drop, match="identical responses"):  # an id is not part of the response
        list(BY_NAME["chat"].parse(same, Reading()))


def test_a_turn_with_the_role_function_call_becomes_a_tool_call() -> None:
    call = {"name": "w", "arguments": {"town": 1}}
    turns = [{"from": "human", "value": "x"}, {"from": "function_call", "value": json.dumps(call)}]
    turns.append({"from": "observation", "value": "21 C"})
    [group] = BY_NAME["sharegpt"].parse({"conversations": turns, "chosen": "a", "rejected": "b"}, Reading())
    assert as_json(group.prompt)[1] == {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}


@pytest.mark.parametrize("role", ["User", "HUMAN", "human", "prompter"])
def test_roles_are_read_in_any_spelling(role: str) -> None:
    assert message_of({"role": role, "content": "x"}, "m") == U("x")


def test_each_assistant_turn_of_an_sft_dialogue_becomes_a_group() -> None:
    row = {"messages": chat(("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b"))}
    groups = list(BY_NAME["sft-messages"].parse(row, Reading()))
    assert [g.responses for g in groups] == [((A("a"),),), ((A("b"),),)]
    assert groups[1].prompt == (U("1"), A("a"), U("2"))


def test_ranked_responses_are_paired_as_configured() -> None:
    scores = [3.0, 1.0, 2.0, 2.0]
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="all"))} == {
        (0, 1),
        (0, 2),
        (0, 3),
        (2, 1),
        (3, 1),
    }
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="best-worst"))} == {(0, 1)}
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="adjacent"))} == {(0, 2), (3, 1)}
    assert [j.margin for j in judgements_from_scores([1.0, 4.0], Reading(margin_from_scores=True))] == [3.0]


def test_the_margin_of_a_pair_can_come_from_its_scores() -> None:
    group = next(iter(BY_NAME["ultrafeedback"].parse(EXAMPLE_ROWS["ultrafeedback"], Reading(margin_from_scores=True))))
    assert group.judgements[0].margin == 1.5
    with pytest.raises(BadRow, match="needs the columns score_chosen"):
        list(BY_NAME["preference"].parse(EXAMPLES[0][1], Reading(margin_from_scores=True)))


@pytest.mark.parametrize("row", [{"query": "q"}, {"messages": [{"role": "user", "content": "q"}]}])
def test_pairs_of_ms_swift_are_parsed(tmp_path: Path, row: dict[str, Any]) -> None:
    """The chosen response is `response` or the last message. There may be several rejected responses."""
    if "query" in row:
        row = {**row, "response": "good", "rejected_response": "bad"}
    else:
        row = {
            "messages": [*row["messages"], {"role": "assistant", "content": "good"}],
            "rejected_response": ["b", "c"],
        }
    [group], _ = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert "good" in str(group.responses[0])
    assert [(j.better, j.worse) for j in group.judgements] == [(0, i) for i in range(1, len(group.responses))]


def test_a_pair_may_have_several_rejected_responses(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": ["b", "c"]}])
    [group], account = read_groups(str(path))
    assert (account.format, group.responses, len(group.judgements)) == ("lists", ("a", "b", "c"), 2)
