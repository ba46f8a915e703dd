"""Very long texts are shortened before they are tokenised: the result is the same, and little is tokenised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_tokenizer
from tests.unit.chat.test_splitting import split_renderer

from preftune.chat import long_texts
from preftune.chat.render import Renderer
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.formats.account import Account
from preftune.types import Judgement, Message, PreferenceGroup

PIECES = ["byte level", "metaspace", "metaspace first", "prepend", "unigram"]
WORD = st.text(st.sampled_from("the cat 12.\n"), min_size=1, max_size=5)
TEXT = st.tuples(st.lists(WORD, min_size=1, max_size=6).map("".join), st.integers(1, 60)).map(lambda a: a[0] * a[1])


def tokens_of(groups: list[PreferenceGroup], renderer: Renderer, limits: Limits) -> tuple[list[Any], dict[str, Any]]:
    account = Account("f", read=len(groups))
    result = tokenize(groups, renderer, limits, account)
    ids = [[group.prompt_ids.tolist(), *(one.tolist() for one in group.response_ids)] for group in result]
    return ids, {**account.dropped, **account.noted}


@pytest.mark.parametrize("pieces", PIECES)
@given(
    st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3), st.booleans(), st.sampled_from(["truncate", "drop"])
)
def test_a_shortened_text_has_the_ids_of_the_truncated_text(
    pieces: str, rows: list[tuple[str, str, str]], chat: bool, overlong: Any
) -> None:
    limits = Limits(max_length=8, overlong=overlong)
    groups = [
        PreferenceGroup(
            (Message("user", p),) if chat else p,
            tuple((Message("assistant", r),) if chat else r for r in (a, b + "x")),
            (Judgement(0, 1),),
            origin=f"f:{i}",
        )
        for i, (p, a, b) in enumerate(rows)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHARACTERS", 10**9)
        expected = tokens_of(groups, split_renderer(pieces), limits)
        for name, value in {"CHARACTERS": 1, "LEAST": 16, "MARGIN": 3, "TAIL": 12}.items():
            patch.setattr(long_texts, name, value)
        assert tokens_of(groups, split_renderer(pieces), limits) == expected


def test_only_a_part_of_a_very_long_row_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer.of(make_tokenizer())
    counts = []
    original = Renderer._ids

    def counted(self: Renderer, texts: Any, special_tokens: bool) -> Any:
        counts.append(sum(map(len, texts)))
        return original(self, texts, special_tokens)

    monkeypatch.setattr(Renderer, "_ids", counted)
    words = "the cat sat on the mat " * 100_000
    groups = [PreferenceGroup(words, (words + "a", words + "b"), (Judgement(0, 1),))]
    ids, notes = tokens_of(groups, renderer, Limits(64))
    assert ids == []  # the responses differ only at the end
    assert "the responses are identical after truncation" in notes
    assert sum(counts) < len(words) / 10


def test_texts_that_are_the_same_in_their_excerpts_are_tokenised_whole() -> None:
    """The reason for dropping the row is the right one: its responses differ, but not after truncation."""
    words = "the cat sat on the mat " * 20_000
    middle = len(words) // 2
    groups = [PreferenceGroup("a", (words, words[:middle] + "X" + words[middle:]), (Judgement(0, 1),))]
    assert (
        "the responses are identical after truncation"
        in tokens_of(groups, Renderer.of(make_tokenizer()), Limits(64))[1]
    )
