"""Runs on streamed data: a resumed run equals an uninterrupted one, and every row is used once per pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import DataConfig, DPOConfig, RewardConfig, SFTConfig, TrainConfig
from preftune.data import stream
from preftune.errors import ConfigError, DataError, RunError, Stopped
from preftune.methods import dpo, reward, sft
from preftune.train import loop
from preftune.train.run import Run

WORDS = ("moon", "river", "house", "wood", "hill", "cat", "dog", "sky")


def row(i: int) -> dict[str, Any]:
    name = f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {i}"
    return {"prompt": f"what is the {name}?", "chosen": f"yes, the {name}", "rejected": f"no {i}"}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 8)


@pytest.fixture
def files() -> Iterator[str]:
    """Three files with 9, 30 and 5 rows, on a file system of fsspec."""
    system = fsspec.filesystem("memory")
    begin = 0
    for name, rows in (("a", 9), ("b", 30), ("c", 5)):
        with system.open(f"/stream/{name}.jsonl", "w") as file:
            file.write("".join(json.dumps(row(i)) + "\n" for i in range(begin, begin + rows)))
        begin += rows
    yield "memory://stream/*.jsonl"
    system.rm("/stream", recursive=True)


def streamed(files: Any, folder: Path, out: Path, steps: int = 12, **data: Any) -> DPOConfig:
    section = DataConfig(train=files, stream=True, **{"shuffle_buffer": 6, **data})
    train = TrainConfig(max_steps=steps, save_every=3)
    return config(Path(), folder, out, data=section, train=train)


def used_rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the origins of the groups of each step."""
    origins: list[str] = []
    update = loop.update

    def collecting(task: Any, groups: Any, *rest: Any) -> Any:
        origins.extend(group.origin for group in groups)
        return update(task, groups, *rest)

    monkeypatch.setattr(loop, "update", collecting)
    return origins


def test_streamed_transcripts_become_the_chats_of_a_chat_model(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"chosen": f"\n\nHuman: hi {i}\n\nAssistant: yes {i}", "rejected": f"\n\nHuman: hi {i}\n\nAssistant: no"}
        for i in range(12)
    ]
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}")
    used: dict[str, dict[str, list[int]]] = {"whole": {}, "stream": {}}
    update = loop.update

    def collecting(task: Any, groups: Any, *rest: Any) -> Any:
        used[name].update({group.origin: group.prompt_ids for group in groups})
        return update(task, groups, *rest)

    monkeypatch.setattr(loop, "update", collecting)
    for name in used:
        section = DataConfig(train=str(tmp_path / "hh.jsonl"), chat_template=str(template), stream=name == "stream")
        train = TrainConfig(max_steps=4)
        dpo.run(config(tmp_path, model_folder, tmp_path / name, data=section, train=train), display=quiet())
    assert used["stream"]
    both = used["whole"].keys() & used["stream"].keys()
    assert both
    assert all(list(used["whole"][origin]) == list(used["stream"][origin]) for origin in both)


@pytest.mark.parametrize("steps", [1, 8])
def test_a_resumed_stream_has_the_weights_and_metrics_of_an_uninterrupted_one(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, files: str, steps: int
) -> None:
    whole = dpo.run(streamed(files, model_folder, tmp_path / "whole"), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stopped, match=f"stopped after step {steps} of 12"):
            dpo.run(streamed(files, model_folder, tmp_path / "parts"), display=quiet())
    parts = dpo.run(streamed(files, model_folder, tmp_path / "parts"), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    """The error comes after two more steps than the checkpoint has, in the second pass over the data."""
    whole = dpo.run(streamed(files, model_folder, tmp_path / "whole", 30), display=quiet())
    with monkeypatch.context() as patch:
        log_train = Run.log_train

        def dying(self: Run, step: int, values: dict[str, float]) -> None:
            if step == 26:
                raise KeyboardInterrupt
            log_train(self, step, values)

        patch.setattr(Run, "log_train", dying)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            dpo.run(streamed(files, model_folder, tmp_path / "parts", 30), display=quiet())
    parts = dpo.run(streamed(files, model_folder, tmp_path / "parts", 30), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_shares_of_several_streams_are_exact(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    sources = [
        {"path": "memory://stream/a.jsonl", "share": 0.25},
        {"path": "memory://stream/b.jsonl", "share": 0.75, "name": "large"},
    ]
    origins = used_rows(monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            dpo.run(streamed(sources, model_folder, tmp_path / "out"), display=quiet())
    dpo.run(streamed(sources, model_folder, tmp_path / "out"), display=quiet())
    assert len(origins) == 24
    for end in range(4, 25, 4):
        assert sum("a.jsonl" in origin for origin in origins[:end]) == end // 4
    assert len(set(origins)) == 24
    assert any("source/large/loss" in line for line in metrics(tmp_path / "out"))


def test_prompts_of_the_evaluation_data_are_left_out_and_counted(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in (3, 5)))
    origins = used_rows(monkeypatch)
    settings = streamed(files, model_folder, tmp_path / "out", 21, eval=str(tmp_path / "eval.jsonl"))
    dpo.run(settings, display=quiet())
    assert "memory://stream/a.jsonl:4" not in origins
    assert len(set(origins)) == 42


def test_changed_data_do_not_resume(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(streamed(files, model_folder, tmp_path / "out"), display=quiet())
    with fsspec.filesystem("memory").open("/stream/c.jsonl", "w") as file:
        file.write(json.dumps(row(1)) + "\n")
    with pytest.raises(RunError, match="the data files have changed"):
        dpo.run(streamed(files, model_folder, tmp_path / "out"), display=quiet())


def test_sft_and_reward_models_read_streams(tmp_path: Path, model_folder: Path, files: str) -> None:
    data = {"train": files, "stream": True, "shuffle_buffer": 8}
    shared = {"model": {"path": str(model_folder), "dtype": "fp32"}, "data": data, "train": {"max_steps": 2}}
    sft.run(SFTConfig(**shared, batch={"pairs": 3}, samples=0, out=str(tmp_path / "sft")), display=quiet())
    reward.run(RewardConfig(**shared, batch={"pairs": 3}, out=str(tmp_path / "reward")), display=quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": TrainConfig()}, "needs train.max_steps"),
        ({"train": TrainConfig(max_steps=2, epochs=2)}, "remove train.epochs"),
        ({"reference": {"kind": "cached"}}, "use frozen"),
        ({"loss": {"name": "kto"}}, "use loss.name=bco"),
    ],
)
def test_settings_that_a_stream_cannot_have(
    tmp_path: Path, model_folder: Path, files: str, changes: dict[str, Any], message: str
) -> None:
    sections = {"data": DataConfig(train=files, stream=True), "train": TrainConfig(max_steps=2), **changes}
    with pytest.raises(ConfigError, match=message):
        dpo.run(config(Path(), model_folder, tmp_path / "out", **sections), display=quiet())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"eval": 0.1}, "a share of the data cannot be held out"),
        ({"limit": 5}, "write a slice"),
        ({"train": ["a.jsonl", "b.jsonl"]}, "needs a share"),
        ({"train": [{"path": "a.jsonl", "weight": 2}]}, "weight and count need the number of rows"),
    ],
)
def test_data_sections_that_cannot_be_streamed(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"train": "a.jsonl", "stream": True, **data})


def test_a_slice_from_the_end_cannot_be_streamed(tmp_path: Path, model_folder: Path, files: str) -> None:
    with pytest.raises(DataError, match="needs the number of rows"):
        dpo.run(streamed(f"{files}[-5:]", model_folder, tmp_path / "out"), display=quiet())
