"""A small run is killed, and its disk is full, at every call that changes the run folder.

The run has two weights and no model, so that all calls can be tested. tests/resume/test_kills.py kills whole runs.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from preftune.errors import StorageError
from preftune.train import full_disk
from preftune.train.display import Display
from preftune.train.manifest import run_identity
from preftune.train.metrics import Tally
from preftune.train.optim import Weights
from preftune.train.run import Run

CALLS = ("replace", "rename", "fsync", "link", "unlink", "rmdir", "mkdir", "ftruncate", "open")
EVERY = 1 if "PREFTUNE_KILLS" in os.environ else 4  # `make kills` tests all calls
STEPS = 3  # the third checkpoint removes the first one
BEST = {"metric": "loss", "direction": "auto", "final": "best", "patience": None, "min_change": 0.0}
CONFIG = {"train": {"save_every": 1, "save_end": True}, "best": BEST}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with torch")


def run(folder: Path) -> None:
    """Train, with an evaluation before the first step and after each. The one after step 1 is the best."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    log = Run.open(folder, run_identity(CONFIG, "data"), Display(quiet=True))
    weights = Weights(model)
    optimizer = torch.optim.AdamW(weights.masters, lr=0.1)
    log.attach(weights, optimizer, STEPS)

    def evaluate(step: int) -> None:
        log.reached(step, Tally(), 1, evaluated=False)
        log.log_evaluation(step, {"loss": abs(model.weight.item() + 0.1)})

    if log.start == 0 or log.evaluation_due:
        evaluate(log.start)
    log.reached(log.start, Tally(), 1, evaluated=True)
    for step in range(log.start + 1, STEPS + 1):
        for master in weights.masters:
            master.grad = torch.full_like(master, float(step))
        optimizer.step()
        log.log_train(step, {"loss": model.weight.item()})
        evaluate(step)
        log.reached(step, Tally(), 1, evaluated=True)
        log.save_if_due(step, Tally(), 1)
    log.end()
    full_disk.patiently(lambda: log.note(finished=True, result=[model.weight.item(), model.bias.item()]), print)
    log.close()


def bytes_of(folder: Path) -> dict[str, Any]:
    """The result, metrics and tensors of a run, and the names of all files."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    content = {
        name: path.read_bytes() for name, path in files.items() if "manifest" not in name and "state" not in name
    }
    manifest = Run.manifest(folder)
    return {**content, "names": list(files), "result": manifest["result"], "best": manifest["best"]}


@contextmanager
def at_call(number: int, inside: Path, action: Callable[[], None]) -> Iterator[list[int]]:
    """Do `action` before call `number` that changes a path inside a folder. The disk is not waited for.

    Yield a list that gets a 1 for each call. Files are opened by `os.open` of tempfile and by `io.open`.
    """
    calls: list[int] = []

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
            mode = str(arguments[0] if arguments else options.get("mode", "r"))
            if str(target).startswith(str(inside)) and (name != "open" or set(mode) & set("wax")):
                calls.append(1)
                if len(calls) == number:
                    action()
            return None if name == "fsync" else original(path, *arguments, **options)

        return call

    import io

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            owner = io if name == "open" else os
            patch.setattr(owner, name, wrap(name, getattr(owner, name)))
        yield calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """The files of an uninterrupted run, and its number of calls."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with at_call(0, folder, lambda: None) as calls:
        run(folder)
    assert Run.manifest(folder)["best"]["step"] == 1
    return bytes_of(folder), len(calls)


def test_a_kill_at_any_call_changes_nothing(whole: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, count = whole
    assert count > 60
    for number in range(1, count + 1, EVERY):
        folder = tmp_path / str(number)
        pid = os.fork()
        if pid == 0:
            with at_call(number, folder, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                run(folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with at_call(0, folder, lambda: None):
            run(folder)
        assert bytes_of(folder) == expected, number


def test_a_full_disk_at_any_call_loses_nothing(
    whole: tuple[dict[str, Any], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once at each call. Only the start of a run ends, with a StorageError."""
    monkeypatch.setattr(full_disk, "RETRY_S", 0.0)
    expected, count = whole
    ended = []

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in range(2, count + 1, EVERY):
        folder = tmp_path / str(number)
        with at_call(number, folder, fail):
            try:
                run(folder)
            except StorageError:
                ended.append(number)
                assert not (folder / "metrics.jsonl").exists()
                run(folder)
        done = bytes_of(folder)
        assert done["metrics.jsonl"] == expected["metrics.jsonl"], number
        last = f"checkpoints/step-{STEPS:08d}/weights.safetensors"
        assert done[last] == expected[last], number
    assert all(number <= count / 3 for number in ended)


def test_a_checkpoint_that_a_killed_process_was_about_to_delete_is_deleted(tmp_path: Path) -> None:
    """It may have lost some of its files. Damage of a newer one keeps it."""
    run(tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    names = [path.name for path in sorted(checkpoints.iterdir())]
    for damaged in (False, True):
        shutil.copytree(checkpoints / names[0], checkpoints / "step-00000001")
        if damaged:
            (checkpoints / names[-1] / "weights.safetensors").write_bytes(b"")
        log = Run.open(tmp_path / "run", run_identity(CONFIG, "data"), Display(quiet=True))
        log.close()
        assert (checkpoints / "step-00000001").is_dir() == damaged
