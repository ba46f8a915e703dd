"""The result of a run with `best` has the weights of its best evaluation, also after it was stopped or killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import (
    BatchConfig,
    BestConfig,
    DataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    TrainConfig,
)
from preftune.errors import RunError, Stopped
from preftune.lifecycle.task import ResponseTask
from preftune.methods import dpo, reward
from preftune.train.display import Display
from preftune.train.manifest import write
from preftune.train.run import Run

LOSSES = [0.7, 0.6, 0.5, 0.55, 0.52, 0.51, 0.4, 0.3, 0.2]  # of the evaluations after steps 0, 1, 2, ...


@pytest.fixture(autouse=True)
def _held_out_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each evaluation its loss of LOSSES, by the number of updates of the policy."""
    real = ResponseTask.evaluate

    def evaluate(self: ResponseTask) -> dict[str, float]:
        [step] = {int(state["step"]) for state in OPTIMIZERS[-1].state.values()} or {0}
        return {**real(self), "loss": LOSSES[step]}

    made = torch.optim.AdamW.__init__

    def make(self: torch.optim.AdamW, *arguments: Any, **settings: Any) -> None:
        made(self, *arguments, **settings)
        OPTIMIZERS.append(self)

    monkeypatch.setattr(ResponseTask, "evaluate", evaluate)
    monkeypatch.setattr(torch.optim.AdamW, "__init__", make)


OPTIMIZERS: list[torch.optim.AdamW] = []


def settings(source: Path, folder: Path, out: Path, steps: int, best: Any = None, **sections: Any) -> DPOConfig:
    train = TrainConfig(epochs=9, max_steps=steps, eval_every=1, **sections.pop("train", {}))
    optim = OptimConfig(lr=1e-3, schedule="constant", warmup=0)
    return config(source, folder, out, train=train, optim=optim, best=best, **sections)


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["full", "lora", "bf16"])
def test_the_result_is_that_of_a_run_that_ends_at_the_best_evaluation(
    tmp_path: Path, model_folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    sections: dict[str, Any] = {"lora": LoraConfig(rank=2)} if kind == "lora" else {}
    if kind == "bf16":
        sections["model"] = ModelConfig(path=str(model_folder), dtype="bf16")
    run = tmp_path / "run"
    final = dpo.run(settings(data, model_folder, run, 5, {"metric": "loss"}, **sections), display=Display())
    assert "The result is the weights of step 2, whose loss of 0.5 is the best one" in capsys.readouterr().err
    assert same(final, dpo.run(settings(data, model_folder, tmp_path / "two", 2, **sections), display=quiet()))
    manifest = Run.manifest(run)
    assert (manifest["best"], manifest["steps"]) == ({"metric": "loss", "step": 2, "value": 0.5}, 5)
    assert "the weights of step 2, the best evaluation by loss (0.5)" in (run / "report.html").read_text()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["best-00000002", "step-00000005"]


def test_the_weights_before_training_can_be_the_best_ones(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(globals(), "LOSSES", [0.1] + [1.0] * 9)
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    final = dpo.run(settings(data, model_folder, tmp_path / "run", 3, {"metric": "loss"}), display=Display())
    assert "The result is the weights before training" in capsys.readouterr().err
    original = weights(model_folder)
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights(final).items())


def test_a_run_stops_early_after_evaluations_without_a_better_one(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    stopping = settings(data, model_folder, tmp_path / "run", 8, {"metric": "loss", "patience": 2})
    final = dpo.run(stopping, display=Display())
    assert "stopped early after step 4: 2 evaluations without a better loss" in capsys.readouterr().err
    assert [line["step"] for line in metrics(tmp_path / "run") if line["split"] == "eval"] == [0, 1, 2, 3, 4]
    manifest = Run.manifest(tmp_path / "run")
    assert (manifest["steps"], manifest["stopped_early"], manifest["finished"]) == (4, 2, True)
    assert same(final, dpo.run(settings(data, model_folder, tmp_path / "two", 2), display=quiet()))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert dpo.run(stopping, display=quiet()) == final
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("patience", [4, None])
def test_a_higher_patience_continues_an_early_stop_exactly(
    tmp_path: Path, model_folder: Path, patience: int | None
) -> None:
    """The rest equals a run that had this patience from the start."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    linear = {"optim": OptimConfig(lr=1e-3)}

    def run(out: str, patience: int | None) -> Path:
        first = settings(data, model_folder, tmp_path / out, 8, {"metric": "loss", "patience": patience})
        return dpo.run(first.model_copy(update=linear), display=quiet())

    run("parts", 2)
    assert same(run("parts", patience), run("whole", patience))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert Run.manifest(tmp_path / "parts")["best"] == {"metric": "loss", "step": 8, "value": 0.2}


def test_more_steps_do_not_continue_an_early_stop(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    best = {"metric": "loss", "patience": 1}
    dpo.run(settings(data, model_folder, tmp_path / "run", 5, best), display=quiet())
    with pytest.raises(RunError, match=r"raise best\.patience"):
        dpo.run(settings(data, model_folder, tmp_path / "run", 8, best), display=quiet())


@pytest.mark.parametrize("steps", [3])
@pytest.mark.parametrize("patience", [None, 3])
def test_a_stopped_run_has_the_same_best_evaluation(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int, patience: int | None
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    best = {"metric": "loss", "patience": patience}
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 6, best), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stopped):
            dpo.run(settings(data, model_folder, tmp_path / "parts", 6, best), display=quiet())
    parts = dpo.run(settings(data, model_folder, tmp_path / "parts", 6, best), display=quiet())
    assert same(whole, parts)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    keys = ("best", "steps", "stopped_early")
    one, two = (Run.manifest(tmp_path / name) for name in ("whole", "parts"))
    assert [one.get(key) for key in keys] == [two.get(key) for key in keys]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [3, 5])
def test_a_killed_run_has_the_same_best_evaluation(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed after an evaluation, before its weights are saved. The best one before the checkpoint is still there."""
    monkeypatch.setitem(globals(), "LOSSES", [0.9, 0.5, 0.6, 0.4, 0.45, 0.3, 0.35])
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    sections = {"train": {"save_every": 2}}
    best = {"metric": "loss"}
    whole = dpo.run(settings(data, model_folder, tmp_path / "whole", 6, best, **sections), display=quiet())
    real = Run._save_best

    def kill(self: Run, step: int, value: float) -> None:
        if step == moment:
            raise Killed
        real(self, step, value)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save_best", kill)
        with pytest.raises(Killed):
            dpo.run(settings(data, model_folder, tmp_path / "parts", 6, best, **sections), display=quiet())
    parts = dpo.run(settings(data, model_folder, tmp_path / "parts", 6, best, **sections), display=quiet())
    assert same(whole, parts)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_run_killed_after_its_early_stop_finishes_there(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    stopping = settings(data, model_folder, tmp_path / "run", 8, {"metric": "loss", "patience": 2})
    final = dpo.run(stopping, display=quiet())
    one = weights(final)
    manifest = Run.manifest(tmp_path / "run")
    ended = ("finished", "stopped_early", "best")
    write(tmp_path / "run", {name: value for name, value in manifest.items() if name not in ended})
    two = weights(dpo.run(stopping, display=quiet()))
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = Run.manifest(tmp_path / "run")
    assert [again[key] for key in ("steps", "stopped_early", "best")] == [4, 2, manifest["best"]]


def test_an_extended_run_keeps_the_best_evaluation_so_far(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "LOSSES", [0.9, 0.5, 0.6, 0.7, 0.8, 0.9])
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    best = {"metric": "loss"}
    one = weights(dpo.run(settings(data, model_folder, tmp_path / "run", 3, best), display=quiet()))
    two = weights(dpo.run(settings(data, model_folder, tmp_path / "run", 5, best), display=quiet()))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert Run.manifest(tmp_path / "run")["steps"] == 5


def test_damaged_weights_of_the_best_evaluation_are_an_error(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    best = {"metric": "loss"}
    dpo.run(settings(data, model_folder, tmp_path / "run", 3, best), display=quiet())
    (tmp_path / "run" / "checkpoints" / "best-00000002" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="the weights of the best evaluation are damaged"):
        dpo.run(settings(data, model_folder, tmp_path / "run", 5, best), display=quiet())


def test_evaluations_at_other_steps_are_an_error_for_a_run_with_best(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    first = settings(data, model_folder, tmp_path / "run", 3, BestConfig(metric="loss"))
    dpo.run(first, display=quiet())
    other = first.model_copy(update={"train": first.train.model_copy(update={"eval_every": 2})})
    with pytest.raises(RunError, match=r"train.eval_every was 1, is now 2"):
        dpo.run(other, display=quiet())


@pytest.mark.parametrize("patience", [2, None])
def test_a_stop_after_the_best_weights_were_loaded_keeps_the_last_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    """A reward model measures its scale with the best weights. The checkpoint has those of the last step."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)

    def run(out: str) -> Path:
        return reward.run(
            RewardConfig(
                model=ModelConfig(path=str(model_folder), dtype="fp32"),
                data=DataConfig(train=str(data), eval=0.25),
                batch=BatchConfig(pairs=2),
                optim=OptimConfig(lr=1e-3, schedule="constant", warmup=0),
                train=TrainConfig(epochs=9, max_steps=5, eval_every=1),
                best={"metric": "loss", "patience": patience},
                out=str(tmp_path / out),
            ),
            display=quiet(),
        )

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(reward, "measured_scale", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            run("parts")
    name = f"checkpoints/step-0000000{4 if patience else 5}"
    whole_files, parts_files = (sorted((tmp_path / out / name).glob("*.safetensors")) for out in ("whole", "parts"))
    assert [path.read_bytes() for path in whole_files] == [path.read_bytes() for path in parts_files]
    assert same(whole, run("parts"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
