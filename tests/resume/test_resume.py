"""The same command again: resumes a stopped run, leaves a finished one alone, refuses what is not the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PAIRS, make_model, write_jsonl

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.errors import RunError, Stopped
from preftune.lifecycle.guard import stoppable
from preftune.methods import dpo, sft
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.train.run import Run, run_identity

TIMES = {"pairs_per_s", "tokens_per_s"}


def config(source: Path, folder: Path, out: Path, **sections: Any) -> DPOConfig:
    settings: dict[str, Any] = {
        "model": ModelConfig(path=str(folder), dtype="fp32"),
        "data": DataConfig(train=str(source), eval=0.25),
        "optim": OptimConfig(lr=1e-3),
        "batch": BatchConfig(pairs=2),
        "train": TrainConfig(epochs=4, eval_every=3, save_every=3),
        "monitor": None,
        "out": str(out),
        **sections,
    }
    return DPOConfig(**settings)


def quiet() -> Display:
    return Display(quiet=True)


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*.safetensors")
    return load_file(path)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if the user had asked to stop during step `steps`."""
    seen = 0

    def requested(self: Run) -> bool:
        nonlocal seen
        seen += 1
        return seen == steps

    monkeypatch.setattr(Run, "stop_requested", requested)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optim": OptimConfig(name="rmsprop", lr=1e-4, schedule="constant", warmup=5)},
        {"lora": LoraConfig(rank=4, alpha=8.0)},
        {"model": "bf16"},
        {"reference": {"kind": "frozen"}},
        {"loss": {"name": "kto"}},
        {"monitor": MonitorConfig(prompts=2, max_new_tokens=6)},
    ],
    ids=["adamw", "rmsprop", "lora", "bf16", "frozen", "kto", "monitor"],
)
@pytest.mark.parametrize("steps", [1, 5])
def test_stopped_and_resumed_is_uninterrupted(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], steps: int
) -> None:
    """Bit-identical weights and metrics."""
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


def test_a_killed_run_loses_what_followed_the_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 5 with a checkpoint of step 3: steps 4 and 5 are done again, their lines appear once."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(config(data, model_folder, tmp_path / "whole"), display=quiet())

    class Killed(BaseException):
        pass

    seen = 0

    def kill(self: Run) -> bool:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise Killed
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_requested", kill)
        with pytest.raises(Killed):
            dpo.run(config(data, model_folder, tmp_path / "parts"), display=quiet())
    assert [m["step"] for m in metrics(tmp_path / "parts") if m["split"] == "train"] == [1, 2, 3, 4, 5]
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')  # a half-written line
    parts = dpo.run(config(data, model_folder, tmp_path / "parts"), display=quiet())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())


def test_stored_references_do_not_depend_on_where_a_run_stopped(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of many lengths, seen again in a second epoch, and metrics over windows of three steps."""
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
def test_a_damaged_checkpoint_is_named_and_passed_over(
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
    spoil(newest, damage)
    parts = dpo.run(config(data, model_folder, tmp_path / "parts"), display=Display())
    assert "damaged checkpoint is not used: step-00000008" in capsys.readouterr().err
    assert all(torch.equal(a, weights(parts)[name]) for name, a in weights(whole).items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def spoil(checkpoint: Path, damage: str) -> None:
    path = checkpoint / ("state.json" if damage == "state" else "weights.safetensors")
    blob = bytearray(path.read_bytes())
    if damage in ("flipped", "header"):
        blob[-5 if damage == "flipped" else 10] ^= 1
    else:
        blob = blob[:-10]
    path.write_bytes(blob)


def test_with_no_whole_checkpoint_nothing_starts_again(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    before = metrics(tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        spoil(checkpoint, "flipped")
    with pytest.raises(RunError, match="no checkpoint is whole"):
        dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    assert metrics(tmp_path / "run") == before


def test_a_run_killed_at_its_end_finishes(tmp_path: Path, model_folder: Path) -> None:
    """Killed between the final model and the note that the run is over."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    one = weights(dpo.run(settings, display=quiet()))
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "finished": False}))
    (tmp_path / "run" / "final.part-1").mkdir()
    two = weights(dpo.run(settings, display=quiet()))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list((tmp_path / "run").glob("*.part*"))


def test_a_finished_run_is_left_alone(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    final = dpo.run(settings, display=quiet())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert dpo.run(settings, display=quiet()) == final
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_finished_run_of_one_model_is_not_that_of_another(
    tmp_path: Path, model_folder: Path, tokenizer: Any, lora: LoraConfig | None
) -> None:
    """Two models in memory under the same config; the first, and its folder, still get the finished run."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run", lora=lora)
    final = dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet()) == final
    assert dpo.run(settings, display=quiet()) == final
    with pytest.raises(RunError, match="not the one this run started from"):
        dpo.run(settings, model=make_model(seed=1), tokenizer=tokenizer, display=quiet())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_finished_run_is_not_that_of_a_model_put_in_the_same_folder(tmp_path: Path, tokenizer: Any) -> None:
    data, model = write_jsonl(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "model"
    make_model().save_pretrained(model)
    tokenizer.save_pretrained(model)
    settings = config(data, model, tmp_path / "run")
    final = dpo.run(settings, display=quiet())
    make_model().save_pretrained(model)  # the same weights in new files
    assert dpo.run(settings, display=quiet()) == final
    make_model(seed=1).save_pretrained(model)
    with pytest.raises(RunError, match="not the one this run started from"):
        dpo.run(settings, display=quiet())


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"name": "sigmoid", "beta": 0.2}}, "loss.beta was 0.1, is 0.2"),
        ({"train": TrainConfig(epochs=5, eval_every=3, save_every=3)}, "train.epochs was 4, is 5"),
        ({"data": "other"}, "data.train was"),
        ({"data": "edited"}, "the data files have changed"),
    ],
)
def test_another_run_is_refused(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
    finished: bool,
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 99 if finished else 2)
        try:
            dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
        except Stopped:
            assert not finished
    if change.get("data") == "edited":
        write_jsonl(data, list(reversed(PAIRS)))
        change = {}
    elif change.get("data") == "other":
        change = {"data": DataConfig(train=str(write_jsonl(tmp_path / "other.jsonl", PAIRS)), eval=0.25)}
    with pytest.raises(RunError, match=message):
        dpo.run(config(data, model_folder, tmp_path / "run", **change), display=quiet())


@pytest.mark.parametrize("finished", [False, True])
def test_a_data_folder_whose_content_changed_is_refused(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """The name of the folder is the same; a file that is not read may change."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", PAIRS)
    settings = config(folder, model_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 99 if finished else 2)
        try:
            dpo.run(settings, display=quiet())
        except Stopped:
            assert not finished
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    (folder / "notes.txt").write_text("changed since")
    Run.check(tmp_path / "run", run_identity(settings.model_dump(mode="json"), fingerprint(str(folder))))
    write_jsonl(folder / "train.jsonl", [*PAIRS[1:], PAIRS[0]])
    with pytest.raises(RunError, match="the data files have changed") as error:
        dpo.run(settings, display=quiet())
    assert error.value.exit_code == 5
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_what_changes_no_number_may_change(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    free = {"train": TrainConfig(epochs=4, log_every=4, eval_every=None, save_every=5)}
    assert dpo.run(config(data, model_folder, tmp_path / "run", **free), display=quiet()).is_dir()


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"not empty and is no run: thesis.tex"):
        dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_another_tokenizer_is_another_run(
    tmp_path: Path, model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(settings, display=quiet())
    from tests.conftest import make_tokenizer

    with pytest.raises(RunError, match="other token ids"):
        dpo.run(settings, tokenizer=make_tokenizer(bos=False), display=quiet())


def test_a_model_in_memory_resumes_only_from_itself(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, Path("toy"), tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet())
    with pytest.raises(RunError, match="not the one this run started from"):
        dpo.run(settings, model=make_model(seed=5), tokenizer=tokenizer, display=quiet())
    dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet())


def test_sft_resumes_too(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_75(tmp_path: Path, model_folder: Path, number: int) -> None:
    """The real process: one signal, a checkpoint, exit code 75; the same command then finishes."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: {data}}}\nbatch: {{pairs: 1}}\n"
        f"train: {{epochs: 400}}\nloss: {{name: sigmoid}}\nout: {tmp_path / 'run'}\n"
    )
    command = [sys.executable, "-m", "preftune", "dpo", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "everything is saved" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_ctrl_c_before_the_first_step(tmp_path: Path, model_folder: Path) -> None:
    """Before the loop, too, one signal ends the program with 75, wherever it is, and the same command goes on."""
    rows = PAIRS * 3000
    data = write_jsonl(
        tmp_path / "pairs.jsonl", [{**row, "prompt": f"{i} {row['prompt']}"} for i, row in enumerate(rows)]
    )
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: {data}}}\nout: {tmp_path / 'run'}\n"
    )
    command = [sys.executable, "-m", "preftune", "dpo", str(tmp_path / "run.yaml")]
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
            assert process.stderr is not None
            assert "rows read as 'preference'" in process.stderr.readline()
            process.send_signal(number)
            _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert "stopped before the first step" in errors
        assert "Traceback" not in errors


def test_a_signal_that_a_library_swallows_comes_again() -> None:
    @stoppable()
    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            time.sleep(30)

    with pytest.raises(Stopped, match="stopped before the first step"):
        swallow()
