"""Rerunning a command resumes an interrupted run: weights and metrics equal those of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.errors import RunError, Stopped
from preftune.methods import dpo, sft
from preftune.train import machine
from preftune.train.display import Display
from preftune.train.manifest import write
from preftune.train.run import Run


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optim": OptimConfig(name="rmsprop", lr=1e-4, schedule="constant", warmup=5)},
        {"optim": OptimConfig(moments="bf16", lr=1e-4)},
        {"lora": LoraConfig(rank=4, alpha=8.0)},
        {"model": "bf16"},
        {"reference": {"kind": "frozen"}},
        {"loss": {"name": "kto"}},
        {"monitor": MonitorConfig(prompts=2, max_new_tokens=6)},
    ],
    ids=["adamw", "rmsprop", "bf16 moments", "lora", "bf16", "frozen", "kto", "monitor"],
)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_resumed_run_has_the_weights_and_metrics_of_an_uninterrupted_one(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], steps: int
) -> None:
    """They are identical to the last bit."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    if sections.get("model") == "bf16":
        sections = {"model": ModelConfig(path=str(model_folder), dtype="bf16")}
    whole = dpo.run(config(data, model_folder, tmp_path / "whole", **sections), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stopped, match=f"stopped after step {steps} of 12"):
            dpo.run(config(data, model_folder, tmp_path / "parts", **sections), display=quiet())
    assert (tmp_path / "parts" / "checkpoints" / f"step-{steps:08d}").is_dir()
    parts = dpo.run(config(data, model_folder, tmp_path / "parts", **sections), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    one, two = weights(whole), weights(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_repeats_the_steps_after_its_last_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 5 with a checkpoint of step 3. The metrics of steps 4 and 5 appear once."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(config(data, model_folder, tmp_path / "whole"), display=quiet())

    class Killed(BaseException):
        pass

    calls = 0

    def kill(self: Run) -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_requested", kill)
        with pytest.raises(Killed):
            dpo.run(config(data, model_folder, tmp_path / "parts"), display=quiet())
    assert [m["step"] for m in metrics(tmp_path / "parts") if m["split"] == "train"] == [1, 2, 3, 4, 5]
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')  # an incomplete line
    parts = dpo.run(config(data, model_folder, tmp_path / "parts"), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())


def test_stored_reference_log_probs_do_not_depend_on_the_step_of_the_stop(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows of many lengths, several epochs, and metrics averaged over three steps."""
    words = " ".join(row["prompt"] + row["chosen"] for row in PAIRS).split()
    rows = [
        {"prompt": " ".join(words[: 3 * i + 2]), "chosen": " " + words[i], "rejected": " " + " ".join(words[i : 2 * i])}
        for i in range(2, 14)
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    sections: dict[str, Any] = {
        "train": TrainConfig(epochs=3, log_every=3),
        "batch": BatchConfig(pairs=4, tokens=60),
        "data": DataConfig(train=str(data), max_length=200),
    }
    whole = dpo.run(config(data, model_folder, tmp_path / "whole", **sections), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "parts", **sections), display=quiet())
    parts = dpo.run(config(data, model_folder, tmp_path / "parts", **sections), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert [m["step"] for m in metrics(tmp_path / "parts")] == [1, 3, 6, 9]
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())


@pytest.mark.parametrize("damage", ["short", "flipped", "header", "state"])
def test_a_damaged_checkpoint_is_reported_and_an_earlier_one_is_used(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(config(data, model_folder, tmp_path / "whole"), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "parts"), display=quiet())
    newest = tmp_path / "parts" / "checkpoints" / "step-00000008"
    assert newest.is_dir()
    damage_file(newest, damage)
    parts = dpo.run(config(data, model_folder, tmp_path / "parts"), display=Display())
    assert "skipped damaged checkpoint step-00000008" in capsys.readouterr().err
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def damage_file(checkpoint: Path, damage: str) -> None:
    path = checkpoint / ("state.json" if damage == "state" else "weights.safetensors")
    blob = bytearray(path.read_bytes())
    if damage in ("flipped", "header"):
        blob[-5 if damage == "flipped" else 10] ^= 1
    else:
        blob = blob[:-10]
    path.write_bytes(blob)


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    before = metrics(tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage_file(checkpoint, "flipped")
    with pytest.raises(RunError, match="all checkpoints are damaged"):
        dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    assert metrics(tmp_path / "run") == before


def test_a_run_that_was_killed_after_saving_the_final_model_finishes(tmp_path: Path, model_folder: Path) -> None:
    """The manifest does not say that the run is finished."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    one = weights(dpo.run(settings, display=quiet()))
    write(tmp_path / "run", {**Run.manifest(tmp_path / "run"), "finished": False})
    (tmp_path / "run" / "final.part-1").mkdir()
    two = weights(dpo.run(settings, display=quiet()))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list((tmp_path / "run").glob("*.part*"))


def test_a_resumed_sft_run_has_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)

    def settings(out: str) -> SFTConfig:
        return SFTConfig(
            model=ModelConfig(path=str(model_folder), dtype="fp32"),
            data=DataConfig(train=str(data)),
            batch=BatchConfig(pairs=2),
            out=str(tmp_path / out),
        )

    whole = sft.run(settings("whole"), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            sft.run(settings("parts"), display=quiet())
    parts = sft.run(settings("parts"), display=quiet())
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())


def test_a_run_resumes_with_other_logging_evaluation_and_checkpoint_intervals(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    intervals = {"train": TrainConfig(epochs=4, log_every=4, eval_every=None, save_every=5)}
    assert dpo.run(config(data, model_folder, tmp_path / "run", **intervals), display=quiet()).is_dir()


def test_a_resumed_run_uses_the_threads_that_it_began_with(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, own = write_jsonl(tmp_path / "pairs.jsonl", PAIRS), torch.get_num_threads()
    settings = config(data, model_folder, tmp_path / "run")
    try:
        torch.set_num_threads(2)
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Stopped):
                dpo.run(settings, display=quiet())
        for threads, cores, reached, text in (
            (1, 2, 2, "continues with 2 threads instead of 1"),
            (1, 1, 1, "began with 2 threads, but this machine has fewer cores (1)"),
        ):
            torch.set_num_threads(threads)
            monkeypatch.setattr(machine, "core_count", lambda cores=cores: cores)
            with monkeypatch.context() as patch:
                stop_after(patch, 1)
                with pytest.raises(Stopped):
                    dpo.run(settings, display=Display())
            assert torch.get_num_threads() == reached
            assert text in capsys.readouterr().err
    finally:
        torch.set_num_threads(own)
