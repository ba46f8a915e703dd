"""Rows and responses that cannot be trained on are dropped and counted under a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import EXAMPLE_ROWS, PAIR_ROW, chat

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import Drop
from preftune.types import Judgement, PreferenceGroup

# format, row, reason
DROPPED = [
    (
        "chat",
        {"prompt": chat(("user", "x")), "chosen": {"role": "assistant", "content": "", "weight": 1}, "rejected": "b"},
        "empty response",
    ),
    (
        "sft-messages",
        {"messages": [*chat(("user", "x")), {"role": "assistant", "content": "y", "weight": 0}]},
        "all assistant turns have weight 0",
    ),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "identical responses"),
    ("preference", {"prompt": "p", "chosen": " \n", "rejected": "a"}, "empty response"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0}, "weight is not above 0"),
    ("ultrafeedback", EXAMPLE_ROWS["ultrafeedback"] | {"score_rejected": 8.0}, "tied scores"),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
        "prompts of chosen and rejected differ",
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: b", "rejected": "..."},
        "transcript ends with a human turn",
    ),
    (
        "preference-implicit",
        {"chosen": "so it is", "rejected": "so it is not"},
        "one text is the beginning of the other",
    ),
    (
        "chat-implicit",
        {"chosen": chat(("user", "1")), "rejected": chat(("user", "2"))},
        "prompts of chosen and rejected differ",
    ),
    (
        "chat-implicit",
        {
            "chosen": chat(("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b")),
            "rejected": chat(("user", "1"), ("assistant", "c"), ("user", "2")),
        },
        "the response does not end with an assistant turn",
    ),
    (
        "chat-implicit",
        {
            "chosen": chat(("system", "s"), ("user", "1"), ("assistant", "a")),
            "rejected": chat(("system", "s"), ("user", "2"), ("assistant", "b")),
        },
        "prompts of chosen and rejected differ",
    ),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "status": "tie"}, "tie"),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "tie (bothbad)"}, "tie"),
    ("votes", {"prompt": "p", "response_1": "x", "response_2": "y", "preference_strength": 0}, "tie"),
    (
        "chat",
        {
            "prompt": chat(("user", "1")),
            "chosen": chat(("user", "2"), ("assistant", "a")),
            "rejected": chat(("user", "2"), ("assistant", "b")),
        },
        "the dialogue does not begin with the prompt",
    ),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, 1]}, "tied scores"),
    ("ranked", {"prompt": "p", "responses": ["x", "x"], "scores": [1, 2]}, "identical responses"),
    ("ranked", {"prompt": "p", "responses": ["x"], "scores": [1]}, "fewer than two responses"),
    ("sft-messages", {"messages": chat(("user", "1"))}, "no assistant turn after another turn"),
]


@pytest.mark.parametrize(("name", "row", "reason"), DROPPED)
def test_a_row_that_cannot_be_trained_on_is_dropped_with_a_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Drop, match=reason):
        list(BY_NAME[name].parse(row, Reading()))


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "rejected": "a"}, {**good, "chosen": ""}, good, {**good, "chosen": 5}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    groups, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert [g.origin for g in groups] == [f"{path}:1", f"{path}:4"]
    assert account.dropped == {
        "identical responses": [f"{path}:2"],
        "empty response": [f"{path}:3"],
        "cannot be read: column 'chosen' must be text, not a number": [f"{path}:5"],
    }
    assert (account.read, account.kept) == (5, 2)
    with pytest.raises(DataError, match=r"60%"):
        account.check(0.2)
    with pytest.raises(DataError, match=r"a.jsonl:5: column 'chosen' must be text"):
        read_groups(str(path))


def test_only_the_empty_response_of_several_is_removed(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "responses": ["x", " \n", "z"], "scores": [3, 2, 1], "ended": [True, False, True]},
        {"prompt": "p", "responses": ["x", "y", "z"], "scores": [3, 2, 1]},
        {"prompt": "p", "responses": ["x", "", ""], "scores": [3, 2, 1]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    [cut, _], account = read_groups(str(path))
    assert cut == PreferenceGroup(
        "p", ("x", "z"), (Judgement(0, 1),), ranks=(1.0, 3.0), ended=(True, True), origin=f"{path}:1"
    )
    assert account.dropped == {"empty response": [f"{path}:3"]}
    assert account.noted == {"an empty response and its judgements were dropped": [f"{path}:1"]}
    assert account.kept == 2


def test_the_worst_response_of_a_pair_is_never_empty(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "responses": ["", "y", "z"], "scores": [1, 2, 3]}])
    [group], _ = read_groups(str(path), Reading(pairs="best-worst"))
    assert (group.responses, group.judgements) == (("y", "z"), (Judgement(1, 0),))


def test_empty_responses_of_groups_are_removed_with_their_judgements(tmp_path: Path) -> None:
    both = [{"better": 2, "worse": 0}, {"better": 1, "worse": 2}]
    rows = [
        {"prompt": "p", "responses": ["x", "", "z"], "judgements": both, "labels": [1, 1, -1], "ranks": [3, 1, 2]},
        {"prompt": "p", "responses": ["x", "", "z"], "judgements": both[1:]},  # has no judgement left
        {"prompt": "p", "responses": ["x", ""], "judgements": [{"better": 0, "worse": 1}]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    [group], account = read_groups(str(path))
    assert group == PreferenceGroup(
        "p", ("x", "z"), (Judgement(1, 0),), labels=(1, -1), ranks=(3.0, 2.0), origin=f"{path}:1"
    )
    assert account.dropped == {"empty response": [f"{path}:2", f"{path}:3"]}


def test_rare_reasons_are_combined_in_one_line(tmp_path: Path) -> None:
    """The lines list the most frequent reasons; the account itself has all of them."""
    rows = [*({"prompt": 1}, {"prompt": 2}), *({**PAIR_ROW, "probability": f"x{i}"} for i in range(30)), PAIR_ROW]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    _, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert (account.kept, len(account.dropped)) == (1, 31)
    first, columns, *dropped = account.lines()
    assert first.endswith("1 kept")
    assert columns == "  columns used: prompt, chosen, rejected; in dropped rows only: probability"
    assert len(dropped) == 13
    assert dropped[0].endswith("dropped 2 (lines 1, 2): cannot be read: column 'prompt' must be text, not a number")
    assert dropped[-1].endswith("19 other reasons")
    assert "dropped 19 (line" in dropped[-1]
