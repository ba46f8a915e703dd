"""A name means one config and split that are there, or the error gives a name to type that does."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from preftune.errors import DataError
from preftune.sources.splits import choose, listed, nearest

NAMES = st.sampled_from(["train", "test", "train_prefs", "default", "helpful", "a"])
SPLITS = st.lists(NAMES, min_size=1, max_size=3, unique=True)


@given(st.dictionaries(NAMES, SPLITS, min_size=1, max_size=3), st.lists(NAMES | st.just("tset"), max_size=2), st.data())
def test_a_name_or_the_fix_of_its_error_can_be_read(
    splits: dict[str, list[str]], parts: list[str], data: st.DataObject
) -> None:
    default = data.draw(st.none() | st.sampled_from(sorted(splits)))

    def read(parts: list[str]) -> tuple[str, str]:
        return choose("data", parts, list(splits), default, lambda config: splits[config])

    try:
        config, split = read(parts)
    except DataError as error:
        names = re.findall(r"data:[\w:]+", error.fix)
        names = [name for name in names if "CONFIG" not in name]
        assert names
        target = names[-1].split(":")[1:]
        assume(len(target) == 2 or not (set(target) & set(splits)))  # both a config and a split: a second error says so
        config, split = read(target)
    assert split in splits[config]


def test_near_names() -> None:
    assert nearest("train", ["test_prefs", "train_prefs", "train_sft"]) == "train_prefs"
    assert nearest("tset", ["train", "test"]) == "test"
    assert nearest("xyz", ["a", "b"]) == "a"
    assert nearest("train", []) == "train"


def test_long_lists_are_cut() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcd", most=2) == "a, b and 2 more"
