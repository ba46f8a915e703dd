"""A run that is killed with SIGKILL at any call that changes its folder ends with the bytes of an uninterrupted one.

Each run is a forked process. One chain of runs is killed at many calls; a disk that is full at a call ends no run.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, weights

from preftune.config.schema import DPOConfig, TrainConfig
from preftune.errors import writing
from preftune.lifecycle import finish
from preftune.methods import dpo
from preftune.train import checkpoint, full_disk
from preftune.train.metrics_file import MetricsFile
from preftune.train.run import Run

CHANGES = ("replace", "rename", "fsync", "link", "unlink", "rmdir", "mkdir")
"""Functions of os that change the folder. Files are opened and written between them."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with torch")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A forked process cannot use the threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def at_call(number: int, action: Callable[[], None], inside: Path) -> None:
    """Call `action` before call `number` that changes a path `inside` a folder."""
    calls = [0]

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def changed(path: Any, *arguments: Any, **options: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
            if str(target).startswith(str(inside)):
                calls[0] += 1
                if calls[0] == number:
                    action()
            return original(path, *arguments, **options)

        return changed

    for name in CHANGES:
        setattr(os, name, wrap(name))


def in_fork(action: Callable[[], object]) -> int:
    """Do `action` in a forked process. Return its exit code, negative if it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def settings(data: Path, model: Path, out: Path) -> DPOConfig:
    return config(data, model, out, train=TrainConfig(max_steps=3, epochs=4, eval_every=2, save_every=1))


def require_equal(whole: Path, parts: Path) -> None:
    assert Run.finished(parts)
    assert metrics(whole) == metrics(parts)
    assert Run.manifest(whole)["final"] == Run.manifest(parts)["final"]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, two = (run / "checkpoints" / "step-00000003" / name for run in (whole, parts))
        assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in parts.rglob("*") if ".part" in path.name or "damaged" in path.name] == []


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, model_folder: Path) -> None:
    """The kill moves on by a step that visits all kinds of calls. The first kills are before the first manifest."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert in_fork(lambda: dpo.run(settings(data, model_folder, whole), display=quiet())) == 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run(call: int) -> Callable[[], object]:
        def action() -> None:
            at_call(call, kill, parts)
            dpo.run(settings(data, model_folder, parts), display=quiet())

        return action

    calls = [1, 4, 11, 38]
    assert [in_fork(run(call)) for call in calls] == [-signal.SIGKILL] * len(calls)
    assert in_fork(run(100_000)) == 0
    require_equal(whole, parts)


def test_a_full_disk_ends_no_run_and_loses_no_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint can be written after step 2. The lines of metrics wait until the next one."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole, full = tmp_path / "whole", tmp_path / "full"
    dpo.run(settings(data, model_folder, whole), display=quiet())
    real, writes = checkpoint._write, list[int]()
    flush = MetricsFile.flush

    def write(final: Path, tensors: Any, state: dict[str, Any]) -> Path:
        if state["step"] > 2:
            fail(final)
        return real(final, tensors, state)

    def fail(path: Path) -> None:
        with writing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def every_other(file: MetricsFile) -> None:
        writes.extend([1] * bool(file.waiting))
        if file.waiting and len(writes) % 2:
            fail(file.path)
        flush(file)

    messages: list[str] = []
    monkeypatch.setattr(checkpoint, "_write", write)
    display = quiet()
    monkeypatch.setattr(display, "say", messages.append)
    monkeypatch.setattr(MetricsFile, "flush", every_other)
    monkeypatch.setattr(full_disk, "RETRY_S", 0.0)
    final = dpo.run(settings(data, model_folder, full), display=display)
    assert all(torch.equal(tensor, weights(final)[name]) for name, tensor in weights(whole / "final").items())
    assert metrics(whole) == metrics(full)
    failed = [line for line in messages if "no checkpoint was saved" in line]
    assert len(failed) == 2  # after the last step, and at the end
    assert "the newest checkpoint is step-00000002" in failed[0]
    assert [path.name for path in checkpoint.saved(full / "checkpoints")] == ["step-00000001", "step-00000002"]


def test_a_failing_report_does_not_fail_the_run(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no figure")

    messages: list[str] = []
    display = quiet()
    monkeypatch.setattr(display, "say", messages.append)
    for name in ("write_run_page", "write_card", "advise_at_the_end"):
        monkeypatch.setattr(finish, name, fail)
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    dpo.run(settings(data, model_folder, tmp_path / "run"), display=display)
    assert Run.finished(tmp_path / "run")
    assert "report.html could not be written: ValueError: no figure\n  the model is complete" in messages
    assert "report in" not in messages[-1]


def test_a_disk_that_is_full_when_the_final_model_is_renamed_is_waited_for(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after the renaming."""
    real, errors = finish._replace, ["before", "after"]

    def replace(part: Path, final: Path) -> None:
        when = errors.pop() if errors else ""
        if when != "before":
            real(part, final)
        if when:
            with writing(final):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(finish, "_replace", replace)
    monkeypatch.setattr(full_disk, "RETRY_S", 0.0)
    final = dpo.run(
        settings(write_jsonl(tmp_path / "pairs.jsonl", PAIRS), model_folder, tmp_path / "run"), display=quiet()
    )
    assert errors == []
    assert Run.finished(tmp_path / "run")
    assert weights(final)
