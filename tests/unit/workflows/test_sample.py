"""preftune sample and pairs in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.config.schema import DataConfig
from preftune.data.read_groups import read_groups
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
def prompts(tmp_path: Path) -> DataConfig:
    return DataConfig(train=str(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_folder_gives_n_responses_per_prompt(tmp_path: Path, model_folder: Path, prompts: DataConfig) -> None:
    out = samples.run(SampleOptions(str(model_folder), prompts, Sampling(3, 8)), tmp_path / "s.jsonl", QUIET)
    lines = rows(out)
    assert [row["prompt"] for row in lines] == PROMPTS
    for row in lines:
        assert [len(row[key]) for key in ("responses", "ended", "tokens")] == [3, 3, 3]
        assert all(0 < n <= 8 for n in row["tokens"])
        assert all(ended or n == 8 for ended, n in zip(row["ended"], row["tokens"], strict=True))
    assert not (tmp_path / "s.jsonl.part").exists()


def test_an_interrupted_command_resumes_without_sampling_a_response_twice(
    tmp_path: Path, model_folder: Path, prompts: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal ends with an incomplete line. The result equals that of an uninterrupted command."""
    options = SampleOptions(str(model_folder), prompts, Sampling(3, 8))
    whole = samples.run(options, tmp_path / "whole.jsonl", QUIET).read_text()
    monkeypatch.setattr(samples, "ROWS", 2)
    calls, original = 0, samples.sample

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(samples, "sample", interrupt)
    out = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        samples.run(options, out, QUIET)
    part = tmp_path / "s.jsonl.part"
    assert len(rows(part)) == 1 + 4
    part.write_text(part.read_text() + '{"prompt": 1, "k"')
    with pytest.raises(RunError, match="unfinished command with different settings"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(3, 9)), out, QUIET)
    samples.run(options, out, QUIET)
    assert out.read_text() == whole
    calls = 0
    samples.run(options, out, QUIET)
    assert calls == 0


def test_more_new_tokens_than_the_model_has_positions_is_an_error(
    tmp_path: Path, model_folder: Path, prompts: DataConfig
) -> None:
    with pytest.raises(ConfigError, match="in the model's context of 256 tokens"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 300)), tmp_path / "s.jsonl", QUIET)


def test_prompts_that_leave_no_room_for_a_response_are_dropped_and_counted(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that failed leaves no file that would block the next one."""
    prompts = ["the cat", "the cat " * 200, "a dog"]
    data = DataConfig(train=str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": p} for p in prompts])))
    out = tmp_path / "s.jsonl"
    with pytest.raises(ConfigError):
        samples.run(SampleOptions(str(model_folder), data, Sampling(1, 256)), out, QUIET)
    samples.run(SampleOptions(str(model_folder), data, Sampling(2, 8)), out, Display())
    assert [row["prompt"] for row in rows(out)] == ["the cat", "a dog"]
    assert "dropped 1 (line 2): the prompt is longer than 248 tokens" in capsys.readouterr().err
    long = DataConfig(train=str(write_jsonl(tmp_path / "long.jsonl", [{"prompt": "the cat " * 200}])))
    with pytest.raises(DataError, match="no prompt is left"):
        samples.run(SampleOptions(str(model_folder), long, Sampling(2, 8)), tmp_path / "t.jsonl", QUIET)
    assert not list(tmp_path.glob("t.jsonl*"))


@pytest.mark.parametrize("name", ["write_text", "write_json"])
def test_a_command_interrupted_while_it_writes_the_result_resumes(
    tmp_path: Path, model_folder: Path, prompts: DataConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The interruption comes before or after each of the two files is written."""
    options = SampleOptions(str(model_folder), prompts, Sampling(2, 4))
    whole = samples.run(options, tmp_path / "whole.jsonl", QUIET).read_text()
    original = getattr(samples, name)

    def after(*args: Any, **options: Any) -> None:
        original(*args, **options)
        raise KeyboardInterrupt

    def before(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for number, interrupt in enumerate((before, after)):
        out = tmp_path / f"s{number}.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(samples, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                samples.run(options, out, QUIET)
        if out.exists():
            out.write_text(whole.replace("tokens", "tokens ", 1))
            with pytest.raises(RunError, match="changed or damaged"):
                samples.run(options, out, QUIET)
            out.write_text(whole)
        assert samples.run(options, out, QUIET).read_text() == whole
        assert not out.with_name(f"{out.name}.part").exists()


def test_the_meta_file_records_the_stated_settings(tmp_path: Path, model_folder: Path, prompts: DataConfig) -> None:
    """A command resumes only if these are the same, so files of older versions must stay readable."""
    out, kwargs = tmp_path / "s.jsonl", {"style": "terse"}
    (tmp_path / "t.jinja").write_text("{{ style }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    stated = {"chat_template": str(tmp_path / "t.jinja"), "chat_template_kwargs": kwargs, "as_chat": True}
    data = DataConfig(train=prompts.train, max_prompt_length=50, max_dropped=0.5, **stated)
    samples.run(SampleOptions(str(model_folder), data, Sampling(1, 4), 2), out, QUIET)
    meta = json.loads(out.with_name("s.jsonl.meta.json").read_text())
    sampling = {"max_new_tokens": 4, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    del meta["settings"]["weights"], meta["asked"]["prompts"]
    assert meta["settings"] == {
        "model": str(model_folder),
        "sampling": sampling,
        "dtype": "auto",
        "server": None,
        **stated,
    }
    assert meta["asked"] == {"n": 1, "max_prompts": 2, "max_prompt_length": 50, "max_dropped": 0.5}


def test_samples_with_other_settings_are_not_overwritten(
    tmp_path: Path, model_folder: Path, prompts: DataConfig
) -> None:
    out = samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 4)), tmp_path / "s.jsonl", QUIET)
    before = out.read_bytes()
    with pytest.raises(RunError, match="samples with different settings"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 5)), out, QUIET)
    assert out.read_bytes() == before
    out.with_name("s.jsonl.meta.json").unlink()
    with pytest.raises(RunError, match=r"s\.jsonl\.meta\.json, which has the settings of these samples, is missing"):
        samples.run(SampleOptions(str(model_folder), prompts, Sampling(1, 4)), out, QUIET)


def test_a_larger_n_gives_the_same_responses_as_one_call(
    tmp_path: Path, model_folder: Path, prompts: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = str(model_folder), tmp_path / "s.jsonl"
    whole = samples.run(SampleOptions(name, prompts, Sampling(4, 8)), tmp_path / "whole.jsonl", QUIET).read_text()
    sampled, original = 0, samples.sample

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal sampled
        sampled += sum(map(len, kwargs["only"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(samples, "sample", counted)
    for n, max_prompts, total in ((2, 3, 6), (4, None, 16), (1, 2, 16), (4, None, 16)):
        samples.run(SampleOptions(name, prompts, Sampling(n, 8), max_prompts), out, QUIET)
        assert sampled == total
    assert out.read_text() == whole


def test_preference_data_of_samples_can_be_read_for_training(
    tmp_path: Path, model_folder: Path, prompts: DataConfig
) -> None:
    """Responses that were cut off stay marked, and the scores are written."""
    sampled = samples.run(SampleOptions(str(model_folder), prompts, Sampling(4, 8)), tmp_path / "s.jsonl", QUIET)
    out = tmp_path / "prefs.jsonl"
    account = pairs.run(str(sampled), out, SelectionOptions("all", soft=True), open_reward("length"), QUIET)
    groups, read_account = read_groups(str(out))
    assert (account.read, read_account.kept) == (4, len(groups))
    for group, row in zip(groups, rows(out), strict=True):
        assert group.ended == tuple(row["ended"])
        for j in group.judgements:
            assert row["scores"][j.better] > row["scores"][j.worse]
            assert row["scores"][j.better] == len(row["responses"][j.better])
    again = tmp_path / "again.jsonl"
    pairs.run(str(out), again, SelectionOptions("best-worst"), None, QUIET)  # uses the scores of the file
    assert all(len(row["responses"]) == 2 for row in rows(again))


def test_prompts_without_a_pair_are_dropped_and_counted(tmp_path: Path) -> None:
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
def test_a_row_that_is_not_a_sample_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write_jsonl(tmp_path / "s.jsonl", [row])
    with pytest.raises((DataError, ConfigError), match=message):
        pairs.run(str(file), tmp_path / "p.jsonl", SelectionOptions(), None, QUIET)
