"""Checkpoints that a thread writes: the same bytes, the state of their step, and errors that are reported."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, weights
from tests.resume.test_kills import in_fork
from torch import Tensor

from preftune.config.schema import DPOConfig, TrainConfig
from preftune.errors import StorageError, writing
from preftune.files import read_sealed
from preftune.methods import dpo
from preftune.ranks.checkpoint import own_rows
from preftune.train import checkpoint, in_flight, saving
from preftune.train import run as run_module
from preftune.train.in_flight import InThread, in_background, sizes_of
from preftune.train.optim import Weights


def settings(data: Path, model: Path, out: Path) -> DPOConfig:
    return config(data, model, out, train=TrainConfig(max_steps=3, epochs=4, eval_every=2, save_every=1))


def trained() -> tuple[Weights, torch.optim.AdamW]:
    """Return weights in bf16 and fp32, and an optimizer that has a state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2).to(torch.bfloat16))
    held = Weights(model)
    optimizer = torch.optim.AdamW(held.masters, lr=0.1)
    update(held, optimizer)
    return held, optimizer


def update(held: Weights, optimizer: torch.optim.AdamW) -> None:
    for master in held.masters:
        master.grad = torch.randn_like(master)
    optimizer.step()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_thread_writes_the_state_of_the_moment_at_which_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, optimizer = trained()
    expected = files(checkpoint.save(tmp_path / "at once", 3, held, optimizer, {"tokens": 7}))
    may_write, write = threading.Event(), checkpoint._write

    def late(*arguments: Any) -> Path:
        assert may_write.wait(60)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "_write", late)
    begun = checkpoint.begin(tmp_path / "later", 3, held, optimizer, {"tokens": 7})
    update(held, optimizer)
    assert begun.running()
    assert not (tmp_path / "later").exists()
    may_write.set()
    path = checkpoint.complete(begun)
    assert path == tmp_path / "later" / "step-00000003"
    assert files(path) == expected


def test_rows_of_a_rank_are_copied() -> None:
    tensor = torch.arange(6.0).view(3, 2)
    copied, same = own_rows({"w": tensor}, copy=True), own_rows({"w": tensor})
    tensor.zero_()
    assert copied.values["w"].sum() == 15
    assert same.values["w"].sum() == 0


def test_an_error_of_the_thread_is_raised_where_its_result_is_needed() -> None:
    def fail() -> None:
        raise StorageError("no space")

    work = InThread(fail)
    with pytest.raises(StorageError, match="no space"):
        work.result()
    assert not work.running()


def test_small_checkpoints_and_those_without_memory_for_a_copy_are_written_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_flight, "available_to_cpu", lambda: 10**9)
    assert in_background(5 * 10**8, 5 * 10**8)
    assert not in_background(6 * 10**8, 6 * 10**8)
    assert not in_background(in_flight.SMALL - 1, 1)
    assert sizes_of([torch.zeros(3, 2), torch.zeros(4)], 12) == (120, 120)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let threads write all checkpoints of the training loop, and return the steps that they have written."""
    steps: list[str] = []
    begin = checkpoint.begin

    def noted(folder: Path, step: int, *rest: Any) -> checkpoint.Writing:
        steps.append(checkpoint.name_of(step))
        return begin(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "begin", noted)
    monkeypatch.setattr(run_module, "in_background", lambda size, copied: True)
    return steps


def test_a_run_whose_checkpoints_are_written_by_threads_is_the_same(
    tmp_path: Path, model_folder: Path, in_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with monkeypatch.context() as undone:
        undone.setattr(run_module, "in_background", lambda size, copied: False)
        dpo.run(settings(data, model_folder, tmp_path / "at once"), display=quiet())
    assert not in_threads
    dpo.run(settings(data, model_folder, tmp_path / "later"), display=quiet())
    assert in_threads
    for one in sorted((tmp_path / "at once" / "checkpoints").iterdir()):
        other = tmp_path / "later" / "checkpoints" / one.name
        before, after = files(one), files(other)
        states = [read_sealed(path / checkpoint.STATE) for path in (one, other)]
        assert before.keys() == after.keys()
        assert all(before[name] == after[name] for name in before if name != checkpoint.STATE)
        assert states[0]["tally"] == states[1]["tally"]
        assert states[0]["files"] == states[1]["files"]
    assert metrics(tmp_path / "at once") == metrics(tmp_path / "later")


def test_a_run_that_is_killed_while_a_thread_writes_resumes_from_the_checkpoint_before(
    tmp_path: Path, model_folder: Path, in_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    dpo.run(settings(data, model_folder, whole), display=quiet())
    save = checkpoint.save_file

    def kill(values: dict[str, Tensor], path: Path) -> None:
        save(values, path)
        if "step-00000003" in str(path) and path.name == checkpoint.OPTIMIZER:
            os.kill(os.getpid(), signal.SIGKILL)

    def broken() -> None:
        monkeypatch.setattr(checkpoint, "save_file", kill)
        dpo.run(settings(data, model_folder, killed), display=quiet())

    assert in_fork(broken) == -signal.SIGKILL
    names = [path.name for path in checkpoint.saved(killed / "checkpoints")]
    assert names == ["step-00000001", "step-00000002"]
    dpo.run(settings(data, model_folder, killed), display=quiet())
    assert metrics(killed) == metrics(whole)
    assert all(torch.equal(value, weights(killed / "final")[name]) for name, value in weights(whole / "final").items())
    assert not list(killed.rglob("*.part-*"))


def test_a_full_disk_is_reported_and_the_run_continues(
    tmp_path: Path, model_folder: Path, in_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    write, messages = checkpoint._write, list[str]()

    def full(final: Path, tensors: Any, state: dict[str, Any]) -> Path:
        if state["step"] == 2:
            with writing(final):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(final, tensors, state)

    monkeypatch.setattr(checkpoint, "_write", full)
    display = quiet()
    monkeypatch.setattr(display, "say", messages.append)
    dpo.run(settings(data, model_folder, tmp_path / "full"), display=display)
    failed = [line for line in messages if "no checkpoint was saved" in line]
    assert len(failed) == 1
    assert failed[0].startswith("step 2: ")
    assert "the newest checkpoint is step-00000001" in failed[0]
    assert "step-00000003" in [path.name for path in checkpoint.saved(tmp_path / "full" / "checkpoints")]


def test_a_run_that_fails_has_the_checkpoint_that_was_being_written(
    tmp_path: Path, model_folder: Path, in_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    due, write, has_failed = saving.Saving.due, checkpoint._write, threading.Event()

    def late(final: Path, *rest: Any) -> Path:
        assert final.name != "step-00000002" or has_failed.wait(60)
        time.sleep(0.2)
        return write(final, *rest)

    monkeypatch.setattr(checkpoint, "_write", late)

    def fail(self: saving.Saving, step: int, is_busy: bool = False) -> bool:
        if step == 3:
            has_failed.set()
            raise ZeroDivisionError
        return due(self, step, is_busy)

    monkeypatch.setattr(saving.Saving, "due", fail)
    with pytest.raises(ZeroDivisionError):
        dpo.run(settings(data, model_folder, tmp_path / "run"), display=quiet())
    assert checkpoint.saved(tmp_path / "run" / "checkpoints")[-1].name == "step-00000002"
