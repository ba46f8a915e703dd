"""A name refers to an existing config and split, or the error suggests a name that does."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from preftune.errors import DataError
from preftune.sources.splits import choose_part, join_names, nearest

NAMES = st.sampled_from(["train", "test", "train_prefs", "default", "helpful", "a"])
SPLITS = st.lists(NAMES, min_size=1, max_size=3, unique=True)


@given(st.dictionaries(NAMES, SPLITS, min_size=1, max_size=3), st.lists(NAMES | st.just("tset"), max_size=2), st.data())
def test_a_name_or_the_name_in_its_error_refers_to_an_existing_split(
    splits: dict[str, list[str]], parts: list[str], data: st.DataObject
) -> None:
    default = data.draw(st.none() | st.sampled_from(sorted(splits)))

    def read(parts: list[str]) -> tuple[str, str]:
        return choose_part("data", parts, list(splits), default, lambda config: splits[config])

    try:
        config, split = read(parts)
    except DataError as error:
        names = re.findall(r"data:[\w:]+", error.fix)
        names = [name for name in names if "CONFIG" not in name]
        assert names
        target = names[-1].split(":")[1:]
        assume(len(target) == 2 or not (set(target) & set(splits)))  # a name that is both leads to a second error
        config, split = read(target)
    assert split in splits[config]


def test_nearest_prefers_prefixes_then_similar_names() -> None:
    assert nearest("train", ["test_prefs", "train_prefs", "train_sft"]) == "train_prefs"
    assert nearest("tset", ["train", "test"]) == "test"
    assert nearest("xyz", ["a", "b"]) == "a"
    assert nearest("train", []) == "train"


def test_long_lists_of_names_are_shortened() -> None:
    assert join_names("abc") == "a, b, c"
    assert join_names("abcd", limit=2) == "a, b and 2 more"
