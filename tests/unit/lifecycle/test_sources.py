"""Several sources in one run: each read with its settings, numbered, named, and used as much as its section says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_tokenizer, write_jsonl

from preftune.chat.render import Renderer
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig
from preftune.data import spool
from preftune.data.shapes import Shapes
from preftune.errors import ConfigError, DataError
from preftune.lifecycle.data import TokenData, read_data, tokenize_data
from preftune.lifecycle.mixture_plan import mixed_steps, mixture_lines, names_in
from preftune.lifecycle.sources import evaluation_sources, short_name, training_sources
from preftune.types import content


def pair(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"cat {i}", "chosen": f" yes {i}", "rejected": " no", **more}


def vote(i: int) -> dict[str, Any]:
    return {"question": f"dog {i}", "a": f" one {i}", "b": f" two {i}", "winner": "ab"[i % 2], "kind": i % 3}


COLUMNS = {"prompt": "question", "response_a": "a", "response_b": "b"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", [pair(i) for i in range(12)])
    write_jsonl(tmp_path / "votes.jsonl", [vote(i) for i in range(9)])
    write_jsonl(tmp_path / "chats.jsonl", [{**pair(i), "system": f"be kind {i}"} for i in range(20, 24)])
    return tmp_path


VOTES = {"path": "votes.jsonl", "columns": COLUMNS, "ignore": ["kind"]}


def tokens(config: DataConfig) -> TokenData:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenize_data(read_data(config), Renderer.of(tokenizer), config)


@pytest.mark.parametrize("small", [0, 1000], ids=["in files", "in memory"])
@pytest.mark.usefixtures("folder")
def test_each_source_is_read_with_its_settings(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SMALL", small)
    config = DataConfig(train=["pairs.jsonl", {**VOTES, "where": ["kind != 1"]}, "chats.jsonl"], eval=0.3)
    for _ in range(2):  # the second time from the cache
        text = read_data(config)
        assert text.names == ("pairs", "votes", "chats")
        assert [account.format for account in text.accounts] == ["preference", "votes", "preference"]
        assert [account.kept for account in text.accounts] == [12, 6, 4]
        groups = [*text.train, *text.held_out]
        assert Counter(group.source for group in groups) == {0: 12, 1: 6, 2: 4}
        assert all(("cat", "dog", "be kind")[g.source] in content(g.prompt) for g in groups)
        assert [g.source for g in text.train] == sorted(g.source for g in text.train)
    result = tokens(config)
    assert Counter(g.source for g in [*result.train, *result.held_out]) == {0: 12, 1: 6, 2: 4}
    assert {group.source for group in result.held_out} == {0, 1, 2}
    assert Shapes.of(result.train).source_G.tolist() == [group.source for group in result.train]


@pytest.mark.usefixtures("folder")
def test_a_list_of_files_of_one_format_has_the_groups_of_one_data_set() -> None:
    write_jsonl(Path("more.jsonl"), [pair(i) for i in range(12, 15)])
    write_jsonl(Path("all.jsonl"), [pair(i) for i in range(15)])
    several, one = read_data(DataConfig(train=["pairs.jsonl", "more.jsonl"])), read_data(DataConfig(train="all.jsonl"))
    assert [(g.prompt, g.responses) for g in several.train] == [(g.prompt, g.responses) for g in one.train]


@pytest.mark.parametrize("small", [0, 1000], ids=["in files", "in memory"])
@pytest.mark.usefixtures("folder")
def test_several_evaluation_sources(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SMALL", small)
    config = DataConfig(train="pairs.jsonl", eval=[VOTES, {"path": "chats.jsonl", "name": "polite"}])
    text = read_data(config)
    assert text.names == ("pairs", "votes", "polite")
    assert Counter(group.source for group in text.held_out) == {1: 9, 2: 4}
    result = tokens(config)
    assert names_in(result.train, text.names) == {}
    assert names_in(result.held_out, text.names) == {1: "votes", 2: "polite"}
    with pytest.raises(DataError, match="also in the training data"):
        read_data(DataConfig(train=["chats.jsonl", "pairs.jsonl"], eval=[VOTES, "pairs.jsonl[:1]"]))


@pytest.mark.usefixtures("folder")
def test_limit_counts_the_rows_that_are_used() -> None:
    train = ["pairs.jsonl", {**VOTES, "where": ["kind == 2"]}, {"path": "chats.jsonl", "limit": 1}]
    text = read_data(DataConfig(train=train, limit=2, eval="pairs.jsonl[5:8]", allow_overlap=True))
    assert Counter(group.source for group in text.train) == {0: 2, 1: 2, 2: 1}
    assert len(text.held_out) == 3


@pytest.mark.usefixtures("folder")
def test_the_plan_says_how_much_of_each_source_is_used() -> None:
    config = DataConfig(train=[{"path": "pairs.jsonl", "weight": 0.5}, {**VOTES, "share": 0.6}])
    shapes = Shapes.of(tokens(config).train)
    steps, (pairs, votes) = mixed_steps(config, shapes, pairs=4, seed=0, epochs=2, max_steps=None)
    assert (pairs.per_epoch, votes.per_epoch, pairs.share, votes.share) == (6, 9, 0.4, 0.6)
    assert (pairs.in_run, votes.in_run, pairs.most_often, votes.most_often) == (12, 18, 1, 2)
    used = Counter(int(shapes.source_G[i]) for step in steps for i in step.members)
    assert used == {0: 12, 1: 18}
    assert mixture_lines([pairs, votes]) == [
        "mixture: 2 sources, 15 groups per epoch",
        "  pairs: 6 of 12 groups per epoch (40.0%), 12 in this run, each at most once",
        "  votes: 9 groups per epoch (60.0%), 18 in this run, each at most 2 times",
    ]
    _, uses = mixed_steps(config, shapes, pairs=4, seed=0, epochs=2, max_steps=1)
    assert sum(use.in_run for use in uses) == 4
    assert mixed_steps(DataConfig(train="pairs.jsonl"), shapes, 4, 0, 1, None)[1] == ()


@pytest.mark.usefixtures("folder")
def test_margins_of_only_some_sources_are_an_error() -> None:
    write_jsonl(Path("margins.jsonl"), [pair(i, margin=0.5) for i in range(40, 45)])
    with pytest.raises(DataError, match="source 'pairs' has no margins, but source 'margins' has some"):
        tokens(DataConfig(train=["pairs.jsonl", "margins.jsonl"]))
    assert len(tokens(DataConfig(train=["pairs.jsonl", {"path": "margins.jsonl", "ignore": ["margin"]}])).train) == 17


@pytest.mark.usefixtures("folder")
def test_the_error_of_one_source_names_it() -> None:
    write_jsonl(Path("bad.jsonl"), [{"prompt": "x", "nothing": 1}])
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        read_data(DataConfig(train=["pairs.jsonl", "bad.jsonl"]))


def test_names_are_short_and_distinct(tmp_path: Path) -> None:
    names = [
        short_name(path) for path in ("a/b.jsonl.gz", "org/name:test", "data/*.parquet", "*.jsonl", "s3://x/y.csv")
    ]
    assert names == ["b", "name-test", "data", "data", "y"]
    entries = ["a/x.jsonl", "b/x.csv", {"path": "c/x.json"}, {"path": "d", "name": "x-2"}]
    assert [s.name for s in training_sources(DataConfig(train=entries))] == ["x", "x-3", "x-4", "x-2"]
    assert evaluation_sources(DataConfig(train="a", eval=0.1)) == ()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"path": "a", "weight": 1, "count": 2}], "train.0: set only one of weight, share and count"),
        ([{"path": "a", "weigt": 1}], r"unknown key 'train.0.weigt'; did you mean train.0.weight\?"),
        ([{"path": "a", "share": 0.5}, {"path": "b", "share": 0.4}], "the shares add up to 0.9; they must add up to 1"),
        ([{"path": "a", "share": 1.0}, "b"], "leaves nothing for the sources without a share"),
        ([{"path": "a", "name": "x"}, {"path": "b", "name": "x"}], "two sources have the name 'x'"),
        ([{"weight": 2}], "train.0.path is required"),
        ([], "the list needs at least one source"),
        (["a", 3], "train.1: must be text"),
    ],
)
def test_problems_of_sources_name_the_entry(train: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(train=train)


def test_amounts_do_not_apply_to_evaluation_data() -> None:
    with pytest.raises(ConfigError, match=r"weight applies to data\.train"):
        DataConfig(train="a", eval=[{"path": "b", "weight": 2}])


def test_a_single_section_is_a_list_of_one_and_null_keys_are_not_written() -> None:
    config = DataConfig(train={"path": "a", "format": "hh"})
    assert config.model_dump()["train"] == [{"path": "a", "format": "hh"}]
    assert DataConfig(**config.model_dump()) == config


def test_commands_that_read_one_data_set_refuse_settings_of_sources() -> None:
    assert plain_paths(DataConfig(train=["a", {"path": "b"}]).train, "score") == ["a", "b"]
    with pytest.raises(ConfigError, match="score reads all data with the same settings, but the source b has its own"):
        plain_paths(DataConfig(train=["a", {"path": "b", "weight": 2}]).train, "score")
