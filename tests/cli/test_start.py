"""The first line of a command and what is checked before torch is imported; the end of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import PAIRS, write_jsonl


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def run_yaml(tmp_path: Path, model_folder: Path) -> Path:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    config = {
        "model": {"path": str(model_folder)},
        "data": {"train": "pairs.jsonl", "eval": 0.25},
        "batch": {"pairs": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**config, "train": {"max_steps": 1}, "monitor": None, "out": "run"}))
    return path


def test_the_first_line_comes_before_torch_and_the_lines_say_what_is_loaded(tmp_path: Path, run_yaml: Path) -> None:
    done = python("-X", "importtime", "-m", "preftune", "dpo", "run.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    imports = [line.rpartition("|")[2].strip() if line.startswith("import time:") else "" for line in lines]
    first = next(i for i, line in enumerate(lines) if not line.startswith("import time:"))
    assert lines[first] == "loading torch"
    assert not {name.partition(".")[0] for name in imports[:first]} & {"torch", "transformers", "numpy"}
    shown = [line for line in lines if not line.startswith("import time:")]
    order = [
        "loading torch",
        "reading pairs.jsonl",
        "loading transformers and the tokenizer",
        "preparing the token ids of 8 groups",
        "loading the model",
        "reading or computing the reference log-probs",
        "evaluating before the first step",
    ]
    places = [next(i for i, line in enumerate(shown) if line.startswith(text)) for text in order]
    assert places == sorted(places)
    reading = lines.index("reading pairs.jsonl")
    assert "transformers" not in imports[:reading]


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("data.train=no.jsonl", 3, "no.jsonl: no such file"),
        ("data.eval=no.jsonl", 3, "no.jsonl: no such file"),
        ("model.path=./no", 4, "model.path ./no: no such folder"),
        ("reference.path=./no", 4, "reference.path ./no: no such folder"),
        ("track=[mlflow]", 2, "track: mlflow is not installed"),
        ("train.seed=x", 2, "override 'train.seed=x'"),
    ],
)
def test_what_needs_no_torch_is_checked_before_it_is_imported(
    tmp_path: Path, run_yaml: Path, override: str, code: int, message: str
) -> None:
    program = (
        "import sys, importlib.metadata as m\n"
        "installed = m.version\n"
        "def version(name):\n"
        "    if name == 'mlflow': raise m.PackageNotFoundError(name)\n"
        "    return installed(name)\n"
        "m.version = version\n"
        "from preftune.cli.main import run\n"
        f"print(run(['dpo', 'run.yaml', '{override}']), 'torch' in sys.modules)"
    )
    done = python("-c", program, folder=tmp_path)
    assert done.stdout == f"{code} False\n", done.stderr
    assert done.stderr.startswith(message)


def test_a_wrong_selection_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from preftune.cli.main import run\n"
        "print(run(['pairs', 's', '--select', 'x']), 'torch' in sys.modules)"
    )
    assert python("-c", program, folder=tmp_path).stdout == "2 False\n"


def test_the_process_ends_although_a_thread_of_a_library_is_busy(tmp_path: Path) -> None:
    program = (
        "import threading, time; from preftune import __main__ as main\n"
        "main.EXIT_S = 0.2\n"
        "threading.Thread(target=time.sleep, args=(3600,)).start()\n"
        "print('done')\n"
        "main.leave(3)"
    )
    done = python("-c", program, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def test_a_stopped_command_ends_although_a_request_is_open(tmp_path: Path) -> None:
    """The server never answers, and the client would wait for an hour."""
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(3)])
    program = (
        "import os, signal, socket, sys, threading\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "def silent():\n"
        "    connection, _ = server.accept()\n"
        "    connection.recv(10)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=silent, daemon=True).start()\n"
        "url = f'http://127.0.0.1:{server.getsockname()[1]}'\n"
        "sys.argv[1:] = ['sample', '--model', 'm', '--prompts', 'p.jsonl', '--server', url, '--timeout', '3600']\n"
        "from preftune.__main__ import main; main()"
    )
    done = python("-c", program, folder=tmp_path)
    assert done.returncode == 75, done.stderr
    assert done.stderr.endswith("stopped: rerun the same command to resume\n")
    assert "Traceback" not in done.stderr
