"""A run folder accepts only the same run: it is left untouched when finished, and an error when something differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from tests.resume.runs import config, quiet, stop_after

from preftune.config.schema import DataConfig, LoraConfig, ModelConfig, TrainConfig
from preftune.errors import RunError, Stopped
from preftune.lifecycle import compute, start
from preftune.lifecycle.context import within_context
from preftune.locks import NAME, lock_folder
from preftune.methods import dpo
from preftune.sources.read import fingerprint
from preftune.train.manifest import run_identity, write
from preftune.train.run import Run


def test_a_finished_run_is_left_untouched(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    final = dpo.run(settings, display=quiet())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert dpo.run(settings, display=quiet()) == final
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_finished_run_of_another_model_in_memory_is_an_error(
    tmp_path: Path, model_folder: Path, tokenizer: Any, lora: LoraConfig | None
) -> None:
    """The model that started the run, and a folder with its weights, still return the finished run."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run", lora=lora)
    final = dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert dpo.run(settings, model=make_model(), tokenizer=tokenizer, display=quiet()) == final
    assert dpo.run(settings, display=quiet()) == final
    with pytest.raises(RunError, match="not the one this run started from"):
        dpo.run(settings, model=make_model(seed=1), tokenizer=tokenizer, display=quiet())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_finished_run_whose_model_folder_has_other_weights_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
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
        ({"loss": {"name": "sigmoid", "beta": 0.2}}, "loss.beta was 0.1, is now 0.2"),
        ({"train": TrainConfig(epochs=3, eval_every=3, save_every=3)}, "train.epochs was 4, is now 3"),
        ({"data": "other"}, "data.train was"),
        ({"data": "edited"}, "the data files have changed"),
    ],
)
def test_a_changed_setting_or_data_file_is_an_error(
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
def test_a_data_folder_with_changed_content_is_an_error(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Files in the folder that are not data can change."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", PAIRS)
    settings = within_context(config(folder, model_folder, tmp_path / "run"))
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


def test_a_folder_with_other_files_is_an_error_and_left_untouched(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"not empty and is not a run: thesis.tex"):
        dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_folder_that_another_command_uses_is_an_error_before_a_model_is_loaded(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the other command began after this one has read its data."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    run, lock = tmp_path / "run", lock_folder(tmp_path / "other")
    settings = config(data, model_folder, run)

    def use_it(*_: Any) -> None:
        run.mkdir()
        (run / NAME).write_text(json.dumps({**lock.owner, "host": "elsewhere"}))
        (run / f"{NAME}.part-1").touch()

    real = start.load_renderer
    monkeypatch.setattr(start, "load_renderer", lambda *a, **k: (use_it(), real(*a, **k))[1])
    for _ in range(2):
        with pytest.raises(RunError, match="another preftune command is using the run folder"):
            dpo.run(settings, display=quiet())
        monkeypatch.setattr(start, "load_policy", None)  # the second command ends before it loads the model
    assert sorted(path.name for path in run.iterdir()) == [NAME, f"{NAME}.part-1"]
    lock.release()


def test_resuming_with_another_tokenizer_is_an_error(
    tmp_path: Path, model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            dpo.run(settings, display=quiet())
    with pytest.raises(RunError, match="token ids of the data differ"):
        dpo.run(settings, tokenizer=make_tokenizer(bos=False), display=quiet())


def test_resuming_with_another_model_in_memory_is_an_error(
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


def test_a_resumed_run_keeps_its_precision_on_a_machine_with_fast_bf16(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model.dtype=auto. A run of a version that did not record the precision used fp32 on a CPU."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run", model=ModelConfig(path=str(model_folder)))
    monkeypatch.setattr(compute, "has_amx", lambda: False)
    stop_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        dpo.run(settings, display=quiet())
    assert Run.manifest(tmp_path / "run")["precision"] == "fp32"
    monkeypatch.setattr(compute, "has_amx", lambda: True)
    monkeypatch.setattr(compute, "AMX_WIDTH", 1)
    stop_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        dpo.run(settings.model_copy(update={"out": str(tmp_path / "new")}), display=quiet())
    assert Run.manifest(tmp_path / "new")["precision"] == "bf16"
    manifest = Run.manifest(tmp_path / "run")
    del manifest["precision"]
    write(tmp_path / "run", manifest)
    monkeypatch.undo()
    monkeypatch.setattr(compute, "has_amx", lambda: True)
    monkeypatch.setattr(compute, "AMX_WIDTH", 1)
    dpo.run(settings, display=quiet())
    assert Run.manifest(tmp_path / "run")["precision"] == "fp32"
