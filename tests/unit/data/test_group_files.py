"""Groups in files: what is read equals what was written, and the stored shapes equal those that are counted."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preftune.data import arrow_file
from preftune.data.layout import slots_of
from preftune.data.shapes import Shapes
from preftune.data.spool import Spool, write_text
from preftune.data.steps import size_of
from preftune.data.subset import Subset, joined, subset
from preftune.data.text_file import TextFile
from preftune.data.token_file import TokenFile, write_tokens
from preftune.types import Judgement, Message, PreferenceGroup, Text, TokenGroup

TEXT = st.text(st.characters(), max_size=12)  # with half characters
CHAT = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT, st.lists(st.tuples(TEXT, TEXT)).map(tuple)),
    min_size=1,
    max_size=3,
).map(tuple)
NUMBER = st.floats(allow_nan=False)


@st.composite
def annotations(draw: Any, responses: int) -> dict[str, Any]:
    index = st.integers(0, responses - 1)
    one = st.builds(Judgement, index, index, NUMBER, NUMBER, st.just(0.0) | NUMBER)
    size = st.just(0) | st.just(responses)
    return {
        "judgements": tuple(draw(st.lists(one, max_size=3))),
        "labels": tuple(draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=(n := draw(size)), max_size=n))),
        "ranks": tuple(draw(st.lists(NUMBER, min_size=(n := draw(size)), max_size=n))),
        "origin": draw(TEXT),
    }


@st.composite
def text_groups(draw: Any) -> PreferenceGroup:
    text: st.SearchStrategy[Text] = draw(st.sampled_from([TEXT, CHAT]))
    responses = tuple(draw(st.lists(text, min_size=1, max_size=3)))
    ended = draw(st.just(()) | st.just((True, False, True)[: len(responses)]))
    return PreferenceGroup(draw(text), responses, ended=ended, **draw(annotations(len(responses))))


@st.composite
def token_groups(draw: Any) -> TokenGroup:
    ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))
    responses = tuple(draw(st.lists(ids, min_size=1, max_size=3)))
    return TokenGroup(draw(ids), responses, **draw(annotations(len(responses))))


def as_lists(group: TokenGroup) -> tuple[Any, ...]:
    ids = [group.prompt_ids, *group.response_ids]
    assert all(one.dtype == np.int32 for one in ids)
    return [one.tolist() for one in ids], group.judgements, group.labels, group.ranks, group.origin


@given(st.lists(text_groups(), max_size=7))
def test_text_is_read_as_it_was_written(groups: list[PreferenceGroup]) -> None:
    with TemporaryDirectory() as folder:
        file = write_text(groups, Path(folder) / "text.arrow")
        assert list(file) == groups
        assert [file[i] for i in range(len(groups))] == groups
        assert list(file.prompts()) == [(group.prompt, group.origin) for group in groups]


@given(st.lists(token_groups(), max_size=7), st.data())
def test_token_ids_are_read_as_they_were_written(groups: list[TokenGroup], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        write_tokens(Path(folder), groups)
        file = TokenFile(Path(folder))
        assert [as_lists(group) for group in file] == [as_lists(group) for group in groups]
        same_shapes(file, groups)
        assert file.shapes.size_G.tolist() == [size_of(group) for group in groups]
        assert file.shapes.tokens_G.tolist() == [group.tokens for group in groups]
        assert file.shapes.longest_G.tolist() == [group.longest for group in groups]
        for layout in ("rows", "packed", "shared"):
            assert file.shapes.slots_G(layout).tolist() == [slots_of(group, layout) for group in groups]
        if groups:
            indices = np.array(data.draw(st.lists(st.integers(0, len(groups) - 1), max_size=5)), dtype=np.int64)
            part, expected = subset(file, indices), [groups[i] for i in indices]
            assert [as_lists(group) for group in part] == [as_lists(group) for group in expected]
            same_shapes(part, expected)
            same_shapes(joined(file, part), [*groups, *expected])
            assert [as_lists(g) for g in joined(part, file)[1:4]] == [as_lists(g) for g in [*expected, *groups][1:4]]


def same_shapes(stored: Any, groups: list[TokenGroup]) -> None:
    counted, shapes = Shapes.of(groups), stored.shapes
    assert isinstance(shapes, Shapes)
    for name in Shapes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(shapes, name), getattr(counted, name))


def test_a_file_has_several_record_batches(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(arrow_file, "BATCH", 3)
    groups = [PreferenceGroup(f"p{i}", (f"r{i}", ""), (Judgement(0, 1),), origin=f"f:{i}") for i in range(10)]
    file = write_text(groups, tmp_path / "a.arrow")
    assert file.starts.tolist() == [0, 3, 6, 9, 10]
    assert [file[i] for i in (9, 0, -1, 3)] == [groups[i] for i in (9, 0, -1, 3)]
    assert list(file[2:9:2]) == groups[2:9:2]
    assert isinstance(file[:2], Subset)
    monkeypatch.setattr(arrow_file, "BATCH_BYTES", 1)  # every group fills a batch
    assert len(write_text(file, tmp_path / "a.arrow").starts) == 11


def test_a_spool_moves_many_groups_to_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    groups = [PreferenceGroup(f"p{i}", ("r",)) for i in range(5)]
    monkeypatch.setattr("preftune.data.spool.SMALL", 4)
    for count in (4, 5):
        spool = Spool(tmp_path / "a.arrow")
        for group in groups[:count]:
            spool.add(group)
        assert isinstance(spool.groups(), TextFile) == (tmp_path / "a.arrow").exists() == (count == 5)
        assert list(spool.groups()) == groups[:count]
