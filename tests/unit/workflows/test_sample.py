"""preftune sample and pairs in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.groups import read_groups
from preftune.data.select import SelectionOptions
from preftune.errors import ConfigError, DataError, RunError
from preftune.model.generate import Sampling
from preftune.rewards.open import open_reward
from preftune.train.display import Display
from preftune.workflows import pairs
from preftune.workflows import sample as samples
from preftune.workflows.sample import SampleOptions

PROMPTS = ["the cat", "a dog", "once upon a time", "we can"]
QUIET = Display(quiet=True)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_of_a_folder(tmp_path: Path, model_folder: Path, prompts: str) -> None:
    out = samples.run(SampleOptions(str(model_folder), prompts, Sampling(3, 8)), tmp_path / "s.jsonl", QUIET)
    found = rows(out)
    assert [row["prompt"] for row in found] == PROMPTS
    for row in found:
        assert [len(row[key]) for key in ("responses", "ended", "tokens")] == [3, 3, 3]
        assert all(0 < n <= 8 for n in row["tokens"])
        assert all(ended or n == 8 for ended, n in zip(row["ended"], row["tokens"], strict=True))
    assert not (tmp_path / "s.jsonl.part").exists()


def test_what_was_sampled_is_not_sampled_again(
    tmp_path: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some responses, with a line half written: the rest is sampled, and the file is the same."""
    wanted = SampleOptions(str(model_folder), prompts, Sampling(3, 8))
    whole = samples.run(wanted, tmp_path / "whole.jsonl", QUIET).read_text()
    monkeypatch.setattr(samples, "ROWS", 2)
    calls, real = 0, samples.sample

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(samples, "sample", dies)
    out = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        samples.run(wanted, out, QUIET)
    part = tmp_path / "s.jsonl.part"
    assert len(rows(part)) == 1 + 4
    part.write_text(part.read_text() + '{"prompt": 1, "k"')
    with pytest.raises(RunError, match="other samples"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(3, 9)), out, QUIET)
    samples.run(wanted, out, QUIET)
    assert out.read_text() == whole
    calls = 0
    samples.run(wanted, out, QUIET)
    assert calls == 0


def test_too_long_for_the_model(tmp_path: Path, model_folder: Path, prompts: str) -> None:
    with pytest.raises(ConfigError, match="the model was built for 256"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 300)), tmp_path / "s.jsonl", QUIET)


def test_prompts_without_room_are_left_out_and_counted(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One long prompt ends nothing, and a command that failed leaves nothing in the way of the next one."""
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the cat"}, {"prompt": "the cat " * 200}, {"prompt": "a dog"}])
    out = tmp_path / "s.jsonl"
    with pytest.raises(ConfigError):
        samples.run(SampleOptions(str(model_folder), str(file), Sampling(1, 256)), out, QUIET)
    samples.run(SampleOptions(str(model_folder), str(file), Sampling(2, 8)), out, Display())
    assert [row["prompt"] for row in rows(out)] == ["the cat", "a dog"]
    assert "dropped 1 (line 2): the prompt is longer than 248 tokens" in capsys.readouterr().err
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "the cat " * 200}])
    with pytest.raises(DataError, match="no prompt is left"):
        samples.run(SampleOptions(str(model_folder), str(long), Sampling(2, 8)), tmp_path / "t.jsonl", QUIET)
    assert not list(tmp_path.glob("t.jsonl*"))


@pytest.mark.parametrize("name", ["write_rows", "write_json"])
def test_stopped_while_the_result_is_written_it_goes_on(
    tmp_path: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before and after each of the two files: the same command never takes its own samples for other ones."""
    wanted = SampleOptions(str(model_folder), prompts, Sampling(2, 4))
    whole = samples.run(wanted, tmp_path / "whole.jsonl", QUIET).read_text()
    real = getattr(samples, name)

    def after(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    def before(*_: Any) -> None:
        raise KeyboardInterrupt

    for number, dies in enumerate((before, after)):
        out = tmp_path / f"s{number}.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(samples, name, dies)
            with pytest.raises(KeyboardInterrupt):
                samples.run(wanted, out, QUIET)
        assert samples.run(wanted, out, QUIET).read_text() == whole
        assert not out.with_name(f"{out.name}.part").exists()


def test_finished_samples_are_not_overwritten(tmp_path: Path, model_folder: Path, prompts: str) -> None:
    out = samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 4)), tmp_path / "s.jsonl", QUIET)
    before = out.read_bytes()
    with pytest.raises(RunError, match="holds other samples"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 5)), out, QUIET)
    assert out.read_bytes() == before


def test_more_of_a_folder_is_what_one_call_draws(
    tmp_path: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = str(model_folder), tmp_path / "s.jsonl"
    whole = samples.run(SampleOptions(name, prompts, Sampling(4, 8)), tmp_path / "whole.jsonl", QUIET).read_text()
    drawn, real = 0, samples.sample

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal drawn
        drawn += sum(map(len, kwargs["only"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(samples, "sample", counted)
    for n, most, so_far in ((2, 3, 6), (4, None, 16), (1, 2, 16), (4, None, 16)):
        samples.run(SampleOptions(name, prompts, Sampling(n, 8), most), out, QUIET)
        assert drawn == so_far
    assert out.read_text() == whole


def test_pairs_of_samples(tmp_path: Path, model_folder: Path, prompts: str) -> None:
    """What pairs writes is data that training reads, cut-off responses and scores included."""
    drawn = samples.run(SampleOptions(str(model_folder), prompts, Sampling(4, 8)), tmp_path / "s.jsonl", QUIET)
    out = tmp_path / "prefs.jsonl"
    account = pairs.run(str(drawn), out, SelectionOptions("all", soft=True), open_reward("length"), QUIET)
    groups, read = read_groups(str(out))
    assert (account.read, read.kept) == (4, len(groups))
    for group, row in zip(groups, rows(out), strict=True):
        assert group.ended == tuple(row["ended"])
        for j in group.judgements:
            assert row["scores"][j.better] > row["scores"][j.worse]
            assert row["scores"][j.better] == len(row["responses"][j.better])
    again = tmp_path / "again.jsonl"
    pairs.run(str(out), again, SelectionOptions("best-worst"), None, QUIET)  # its own scores
    assert all(len(row["responses"]) == 2 for row in rows(again))


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "s.jsonl",
        [
            {"prompt": "a", "responses": ["x", "y"], "scores": [1, 2]},
            {"prompt": "b", "responses": ["x", "y"], "scores": [1, 1]},
            {"prompt": "c", "responses": ["x", "x"], "scores": [1, 2]},
            {"prompt": "d", "responses": ["x"], "scores": [1]},
        ],
    )
    account = pairs.run(str(file), tmp_path / "p.jsonl", SelectionOptions(), None, QUIET)
    assert {reason: len(origins) for reason, origins in account.dropped.items()} == {
        "all scores are tied": 1,
        "fewer than two different responses": 2,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "responses": ["x", "y"]}, "no scores"),
        ({"prompt": "a", "responses": "x"}, "must be a list of texts"),
        ({"prompt": "a", "responses": ["x", "y"], "scores": [1]}, "list of 2 numbers"),
        ({"responses": ["x", "y"], "scores": [1, 2]}, "prompt"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write_jsonl(tmp_path / "s.jsonl", [row])
    with pytest.raises((DataError, ConfigError), match=message):
        pairs.run(str(file), tmp_path / "p.jsonl", SelectionOptions(), None, QUIET)
