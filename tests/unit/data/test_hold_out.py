"""Held-out data share no prompt and no row with the training data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.formats.examples import FIRST_IS_BETTER, A, U

from preftune.data.split import held_out_mask, hold_out, prompt_key, refuse_overlap
from preftune.data.spool import write_text
from preftune.errors import DataError
from preftune.types import Message, PreferenceGroup, Text


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


def old_split(groups: list[PreferenceGroup], share: float) -> list[bool]:
    """Hold out as documented, with sets of text: prompts of a row stay together, in the order of their hashes."""
    keys = [hashlib.sha256(repr(g.prompt).encode("utf-8", "surrogatepass")).hexdigest() for g in groups]
    sets = [{key} for key in set(keys)]
    for key, group in zip(keys, groups, strict=True):
        for other, other_group in zip(keys, groups, strict=True):
            if group.origin and group.origin == other_group.origin:
                one, two = (next(s for s in sets if k in s) for k in (key, other))
                if one is not two:
                    sets = [s for s in sets if s is not one and s is not two] + [one | two]
    order = sorted(
        sets, key=lambda s: min(s) if len(s) == 1 else hashlib.sha256("".join(sorted(s)).encode()).hexdigest()
    )
    target, held = max(1, round(share * len(set(keys)))), set[str]()
    for component in order:
        if len(held) + len(component) <= target:
            held |= component
    held = held or min(order, key=len)
    return [key in held for key in keys]


PROMPT = st.sampled_from([f"p{i}" for i in range(12)]) | st.sampled_from([(U("a"),), (U("a"), A("b")), (U("p1"),)])


@given(st.lists(st.tuples(PROMPT, st.sampled_from(["", "f:1", "f:2", "f:3", "g", "f:4"])), max_size=14))
@example([(f"p{i}", f"f:{i}") for i in range(12)])
def test_the_split_is_the_documented_one(rows: list[tuple[Text, str]]) -> None:
    groups = [
        PreferenceGroup(prompt, ("a" if isinstance(prompt, str) else (A("a"),),), origin=origin)
        for prompt, origin in rows
    ]
    for share in (0.1, 0.3, 0.7):
        expected = old_split(groups, share) if groups else []
        if all(expected):
            with pytest.raises(DataError):
                held_out_mask(groups, share)
        else:
            assert held_out_mask(groups, share).tolist() == expected
    with TemporaryDirectory() as folder:
        file = write_text(groups, Path(folder) / "a.arrow")
        if expected and not all(expected):
            assert held_out_mask(file, 0.7).tolist() == expected


def test_a_prompt_key_is_a_hash_of_its_representation() -> None:
    """Old runs resume, so the split must not change."""
    for prompt in ("a\n'b'", (U("a"),), (U("'\"\\"), Message("assistant", "", (("tool_calls", "[]"), ("x", "1"))))):
        key = prompt_key(PreferenceGroup(prompt, ()))
        assert key == hashlib.sha256(repr(prompt).encode()).hexdigest()


def test_the_message_names_the_last_row_with_the_prompt() -> None:
    train = [PreferenceGroup(prompt, ("a",), origin=f"f:{i}") for i, prompt in enumerate("abcab")]
    held_out = [PreferenceGroup(prompt, ("a",), origin=f"e:{i}") for i, prompt in enumerate(["x", (U("b"),), "a"])]
    with pytest.raises(DataError, match="2 of 3 evaluation prompts") as error:
        refuse_overlap(train, held_out)
    assert "e:1" in str(error.value)
    assert "f:4" in str(error.value)
