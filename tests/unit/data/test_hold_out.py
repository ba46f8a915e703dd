"""Held-out data share no prompt and no row with the training data."""

from __future__ import annotations

import pytest
from tests.unit.formats.examples import FIRST_IS_BETTER, A, U

from preftune.data.split import hold_out, refuse_overlap
from preftune.errors import DataError
from preftune.types import PreferenceGroup


def test_a_prompt_is_never_in_training_and_held_out_data() -> None:
    groups = [PreferenceGroup(f"p{i % 10}", ("a", "b"), FIRST_IS_BETTER, origin=f"f:{i}") for i in range(40)]
    train, held = hold_out(groups, 0.2)
    assert len(train) + len(held) == 40
    assert len({g.prompt for g in held}) == 2
    assert not {g.prompt for g in held} & {g.prompt for g in train}
    assert hold_out(list(reversed(groups)), 0.2)[1] == list(reversed(held))
    with pytest.raises(DataError, match="cannot hold out"):
        hold_out(groups[:1], 0.2)


def dialogue(*words: str, origin: str) -> list[PreferenceGroup]:
    """Return the groups of a demonstration with several turns."""
    turns = [make(word) for word in words for make in (U, A)]
    return [PreferenceGroup(tuple(turns[:i]), ((turns[i],),), origin=origin) for i in range(1, len(turns), 2)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8])
def test_a_row_and_its_prompts_are_never_on_both_sides(share: float) -> None:
    """The rows have one to four turns, and some begin with the same turn."""
    groups = [
        group
        for i in range(60)
        for group in dialogue(f"hello {i // 2}", *(f"{i} {turn}" for turn in range(i % 4)), origin=f"f:{i}")
    ]
    train, held = hold_out(groups, share)
    assert {g.origin for g in train}.isdisjoint(g.origin for g in held)
    assert {g.prompt for g in train}.isdisjoint(g.prompt for g in held)
    assert len(train) + len(held) == len(groups)
    prompts = len({g.prompt for g in groups})
    assert abs(len({g.prompt for g in held}) - share * prompts) <= 7  # at most 7 prompts are connected by rows
    assert hold_out(groups[::-1], share)[1] == held[::-1]


def test_holding_out_fails_if_all_rows_share_prompts() -> None:
    groups = dialogue("hello", "a", origin="f:1") + dialogue("hello", "b", origin="f:2")
    with pytest.raises(DataError, match="connected by common rows"):
        hold_out(groups, 0.5)
    with pytest.raises(DataError, match="cannot hold out"):
        hold_out([], 0.5)


def test_a_prompt_in_training_and_evaluation_data_is_an_error() -> None:
    groups = [PreferenceGroup(f"p{i}", ("a", "b"), FIRST_IS_BETTER, origin=f"f:{i + 1}") for i in range(3)]
    with pytest.raises(DataError, match=r"1 of 1 evaluation prompts are also in the training data"):
        refuse_overlap(groups, groups[2:])
    refuse_overlap(groups[:2], groups[2:])
