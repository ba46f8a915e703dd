"""Ctrl-C and SIGTERM stop a run cleanly with exit code 75."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune import stop
from preftune.errors import Stopped
from preftune.lifecycle.before_first_step import stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_exits_with_75(tmp_path: Path, model_folder: Path, number: int) -> None:
    """Tested with a real process."""
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
    assert "a checkpoint is saved" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_signal_before_the_first_step_exits_with_75(tmp_path: Path, model_folder: Path) -> None:
    """Also while the data is being read, and again when the command is rerun."""
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
            assert any(line.startswith("reading ") for line in process.stderr)
            process.send_signal(number)
            _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert "stopped before the first step" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_import_of_torch_exits_with_75(tmp_path: Path, model_folder: Path, number: int) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "run.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: {data}}}\nout: run\n")
    command = [sys.executable, "-m", "preftune", "dpo", "run.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading torch\n"
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 75
    assert rest == "stopped before anything was done\n  next: rerun the same command\n"


def test_a_second_signal_in_a_long_micro_batch_exits_with_130(tmp_path: Path, model_folder: Path) -> None:
    """Python cannot run a handler before the computation in C ends. The first signal is still reported."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "slow.py").write_text(
        "import hashlib, os, signal, torch\n"
        "def loss(policy, reference):\n"
        "    if torch.is_grad_enabled():\n"
        "        os.write(2, b'computing\\n')\n"
        "        hashlib.pbkdf2_hmac('sha512', b'', b'', 1_000_000_000)\n"
        "    return -(policy.chosen - policy.rejected)\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: {data}}}\nloss: {{name: 'slow.py:loss'}}\n"
        "monitor: null\nout: run\n"
    )
    command = [sys.executable, "-m", "preftune", "dpo", "run.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert "computing\n" in lines
        process.send_signal(signal.SIGTERM)
        try:
            assert next(lines).startswith("stopping after this step; press Ctrl-C again to stop now")
            time.sleep(2 * stop.SAME_S)
            process.send_signal(signal.SIGINT)
        except BaseException:
            process.kill()  # else the computation continues for an hour
            raise
        rest = "".join(lines)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest


def test_a_signal_that_a_library_swallows_is_sent_again() -> None:
    @stoppable()
    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            time.sleep(30)

    with pytest.raises(Stopped, match="stopped before the first step"):
        swallow()
