"""The audit: its counts, and the rows that it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.audit import audit
from preftune.data.split import refuse_overlap
from preftune.errors import DataError
from preftune.types import Judgement, Message, PreferenceGroup, Text


def pair(prompt: Text, better: str, worse: str, line: int) -> PreferenceGroup:
    return PreferenceGroup(prompt, (better, worse), (Judgement(0, 1),), origin=f"f:{line}")


def user(text: str, role: str = "user") -> tuple[Message, ...]:
    return (Message(role, text),)


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("ab"), st.sampled_from("abc")), max_size=12))
def test_counts_and_origins_agree_with_a_direct_count(rows: list[tuple[str, str, str]]) -> None:
    rows = [row for row in rows if row[1] != row[2]]
    result = audit([pair(*row, line) for line, row in enumerate(rows)], None, [pair("p", "x", "y", 99)])
    at = {name: [int(origin.removeprefix("f:")) for origin in origins] for name, origins in result.origins.items()}
    assert at["repeated_prompts"] == [i for i, row in enumerate(rows) if row[0] in {other[0] for other in rows[:i]}]
    assert at["repeated_judgements"] == [i for i, row in enumerate(rows) if row in rows[:i]]
    assert at["contradictions"] == [i for i, (p, b, w) in enumerate(rows) if (p, w, b) in rows]
    assert at["leaks"] == ([99] if any(row[0] == "p" for row in rows) else [])
    assert result.repeated_prompts == len(at["repeated_prompts"])
    assert result.repeated_judgements == len(at["repeated_judgements"])
    assert result.leaks == len(at["leaks"])


def test_a_row_with_several_groups_is_listed_once() -> None:
    turns = [pair("p", "a", "b", 1), pair("p", "a", "b", 2), pair("p", "b", "a", 2)]
    result = audit(turns)
    assert result.origins["contradictions"] == ("f:1", "f:2")
    assert result.origins["repeated_prompts"] == ("f:2",)
    assert result.repeated_prompts == 2
    assert result.leaks is None
    assert result.origins["leaks"] == ()


@pytest.mark.parametrize(("train", "held_out"), [("p", user("p")), (user("p"), "p"), (user("p"), user("p"))])
def test_a_prompt_is_a_leak_as_text_and_as_a_user_message(train: Text, held_out: Text) -> None:
    ours, theirs = [pair(train, "a", "b", 1)], [pair("other", "a", "b", 2), pair(held_out, "c", "d", 3)]
    assert audit(ours, None, theirs).origins["leaks"] == ("f:3",)
    with pytest.raises(DataError, match="1 of 2 evaluation prompts are also in the training data"):
        refuse_overlap(ours, theirs)


@pytest.mark.parametrize("other", [user("p", "system"), (*user("s", "system"), *user("p")), user("p ")])
def test_a_different_prompt_is_not_a_leak(other: Text) -> None:
    refuse_overlap([pair("p", "a", "b", 1)], [pair(other, "a", "b", 2)])
    assert audit([pair("p", "a", "b", 1)], None, [pair(other, "a", "b", 2)]).leaks == 0
