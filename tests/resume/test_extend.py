"""A finished run continues if the command asks for more steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.errors import RunError, Stopped
from preftune.methods import dpo, reward, sft
from preftune.train.display import Display
from preftune.train.run import Run

CONSTANT = {"optim": OptimConfig(lr=1e-3, schedule="constant", warmup=2)}


def settings(source: Path, model: Path, out: Path, steps: int, **sections: Any) -> DPOConfig:
    train = {"train": TrainConfig(epochs=9, max_steps=steps, **sections.pop("train", {}))}
    return config(source, model, out, **{**CONSTANT, **train, **sections})


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_evaluation(lines: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [line for line in lines if (line["step"], line["split"]) != (step, "eval")]


@pytest.mark.parametrize("sections", [{}, {"lora": LoraConfig(rank=2)}], ids=["full", "lora"])
def test_an_extended_run_with_a_constant_rate_is_the_longer_run(
    tmp_path: Path, model_folder: Path, sections: dict[str, Any]
) -> None:
    """Weights and training metrics are identical to the last bit. Only the evaluation at the earlier end is more."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 7, **sections), display=quiet())
    short = dpo.run(settings(data, model_folder, tmp_path / "parts", 4, **sections), display=quiet())
    assert not same(whole, short)
    longer = dpo.run(settings(data, model_folder, tmp_path / "parts", 7, **sections), display=quiet())
    assert longer == short
    assert same(whole, longer)
    assert without_evaluation(metrics(tmp_path / "parts"), 4) == metrics(tmp_path / "whole")
    manifest = Run.manifest(tmp_path / "parts")
    assert (manifest["finished"], manifest["steps"]) == (True, 7)
    assert [entry["step"] for entry in manifest["extended"]] == [4]


def test_more_epochs_extend_a_run_and_a_decaying_rate_is_reported(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    first = config(data, model_folder, tmp_path / "run", train=TrainConfig(epochs=2))
    dpo.run(first, display=quiet())
    more = first.model_copy(update={"train": TrainConfig(epochs=4)})
    dpo.run(more, display=Display())
    printed = capsys.readouterr().err
    assert "resuming after step 6 of 12" in printed
    assert "the result differs from that of a single run" in printed
    lines = [line for line in metrics(tmp_path / "run") if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[5]["lr"] < lines[6]["lr"]  # the decay of the first run, and that of a run of 12 steps


def test_a_stopped_extension_resumes(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 8), display=quiet())
    dpo.run(settings(data, model_folder, tmp_path / "parts", 4), display=quiet())
    longer = settings(data, model_folder, tmp_path / "parts", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped, match="stopped after step 5 of 8"):
            dpo.run(longer, display=quiet())
    assert not Run.finished(tmp_path / "parts")
    assert same(whole, dpo.run(longer, display=quiet()))
    assert [entry["step"] for entry in Run.manifest(tmp_path / "parts")["extended"]] == [4]


def test_a_run_can_be_extended_twice(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 6), display=quiet())
    for steps in (2, 4, 6):
        parts = dpo.run(settings(data, model_folder, tmp_path / "parts", steps), display=quiet())
    assert same(whole, parts)
    assert [entry["step"] for entry in Run.manifest(tmp_path / "parts")["extended"]] == [2, 4]


def test_a_run_without_a_checkpoint_at_its_end_is_not_extended(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    train = {"save_end": False}
    dpo.run(settings(data, model_folder, tmp_path / "run", 2, train=train), display=quiet())
    assert not (tmp_path / "run" / "checkpoints").exists()
    before = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(RunError, match="has no checkpoint, so it cannot continue with more steps") as error:
        dpo.run(settings(data, model_folder, tmp_path / "run", 4, train=train), display=quiet())
    assert f"model.path={tmp_path / 'run'}" in error.value.fix
    assert (tmp_path / "run" / "manifest.json").read_text() == before


def test_an_earlier_checkpoint_is_used_if_the_one_of_the_end_is_missing(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    train = {"save_every": 3, "save_end": False}
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 6, train=train), display=quiet())
    dpo.run(settings(data, model_folder, tmp_path / "parts", 4, train=train), display=quiet())
    assert same(whole, dpo.run(settings(data, model_folder, tmp_path / "parts", 6, train=train), display=quiet()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": TrainConfig(epochs=9, max_steps=3)}, "train.max_steps was 4, is now 3"),
        ({"train": TrainConfig(epochs=8, max_steps=6)}, "train.epochs was 9, is now 8"),
        ({"train": TrainConfig(epochs=9, max_steps=6, seed=1)}, "train.seed was 0, is now 1"),
        ({"train": TrainConfig(epochs=9, max_steps=6), "loss": {"name": "ipo"}}, "loss.name was"),
    ],
)
def test_other_changes_of_a_finished_run_are_errors(
    tmp_path: Path, model_folder: Path, change: dict[str, Any], message: str
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    first = settings(data, model_folder, tmp_path / "run", 4)
    dpo.run(first, display=quiet())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(RunError, match=message):
        dpo.run(first.model_copy(update=change), display=quiet())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_sft_and_reward_runs_are_extended(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    for schema, method in ((SFTConfig, sft), (RewardConfig, reward)):
        finals = []
        for out, steps in (("whole", (5,)), ("parts", (3, 5))):
            for count in steps:
                final = method.run(
                    schema(
                        model=ModelConfig(path=str(model_folder), dtype="fp32"),
                        data=DataConfig(train=str(data)),
                        batch=BatchConfig(pairs=2),
                        train=TrainConfig(epochs=9, max_steps=count),
                        out=str(tmp_path / schema.__name__ / out),
                        **CONSTANT,
                    ),
                    display=quiet(),
                )
            finals.append(final)
        assert same(*finals), schema.__name__
    scales = [json.loads((final / "config.json").read_text())["reward_scale"] for final in finals]
    assert scales[0] == scales[1]


def test_an_unfinished_run_is_not_extended(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its learning rates would follow two schedules."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            dpo.run(settings(data, model_folder, tmp_path / "run", 3), display=quiet())
    with pytest.raises(RunError, match=r"train.max_steps was 3, is now 6") as error:
        dpo.run(settings(data, model_folder, tmp_path / "run", 6), display=quiet())
    assert "more steps are possible once the run is finished" in error.value.fix
