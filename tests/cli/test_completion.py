"""Completion of command lines: the candidates, and the script in a real bash."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from preftune.cli.candidates import candidates
from preftune.cli.completion import SCRIPTS, split
from preftune.cli.main import app, run
from preftune.config.json_schema import keys_of
from preftune.config.loss_names import loss_signatures
from preftune.losses import PREFERENCE_LOSSES
from preftune.resolve import parameters_of

PROGRAM = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("prefs.jsonl", "run.yaml", "my prefs.jsonl", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "runs" / "dpo").mkdir(parents=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("preftune dp", ["dpo"]),
        ("preftune data c", ["check", "convert"]),
        ("nice -n 19 preftune dpo optim.l", ["optim.lr="]),
        ("preftune dpo optim.schedule=co", ["optim.schedule=cosine", "optim.schedule=constant"]),
        ("preftune dpo lo", ["lora.", "lora=", "loss."]),
        ("preftune dpo loss.name=simpo loss.", ["loss.name=", "loss.beta=", "loss.gamma="]),
        ("preftune dpo loss=ip", ["loss=ipo"]),
        ("preftune ppo rollout.pro", ["rollout.prompts="]),
        ("preftune ppo loss", []),
        ("preftune dpo model.compile=", ["model.compile=true", "model.compile=false", "model.compile=auto"]),
        ("preftune dpo data.train=pre", ["data.train=prefs.jsonl"]),
        ("preftune dpo --data pre", ["prefs.jsonl"]),
        ("preftune dpo --data=pre", ["--data=prefs.jsonl"]),
        ("preftune dpo r", ["reference.", "report_pairs=", "run.yaml", "runs/"]),
        ("preftune dpo pre", []),  # configs are YAML files
        ("preftune dpo --mo", ["--model"]),
        ("preftune score --policy runs/", ["runs/dpo/"]),
        ("preftune score --beta ", []),
        ("preftune score --data x data.tie", ["data.ties="]),
        ("preftune score --data x optim", []),
        ("preftune sample --dtype b", ["bf16"]),
        ("preftune init kt", ["kto"]),
        ("preftune init kto batch.", ["batch.tokens=", "batch.pairs="]),
        ("preftune config schema it", ["iterate"]),
        ("preftune dpo 'data.tr", ["data.train="]),
        ("preftune data show x data.format=hh", ["data.format=hh"]),
        ("preftune nonsense x", []),
        ("echo dpo", []),
    ],
)
def test_the_candidates_for_a_line(line: str, words: list[str]) -> None:
    parts = split(line)
    texts = [candidate.text for candidate in candidates(PROGRAM, parts)] if parts else []
    if "hh" in line:
        assert words[0] in texts
    else:
        assert texts == words


def test_the_losses_are_read_from_their_source() -> None:
    losses = loss_signatures()
    assert list(losses) == list(PREFERENCE_LOSSES)
    for name, function in PREFERENCE_LOSSES.items():
        expected = {key: parameter.default for key, parameter in parameters_of(function).items()}
        assert dict(losses[name].parameters) == expected
        assert losses[name].summary == (function.__doc__ or "").strip().partition("\n")[0]


def test_every_key_has_candidates_on_the_way_to_it() -> None:
    for key in keys_of("dpo"):
        section, dot, _ = key.rpartition(".")
        assert f"{key}=" in [candidate.text for candidate in candidates(PROGRAM, ["dpo", section + dot])]


def test_completing_a_line_imports_no_torch() -> None:
    code = (
        "import sys; from preftune.cli.main import run; code = run(['complete-line', 'bash', 'preftune dpo loss.']); "
        "print(code, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_are_valid_where_the_shell_is_installed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    program = shutil.which(shell)
    if not program:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err


class Bash:
    """An interactive bash in a terminal, with the completion of preftune loaded."""

    def __init__(self, folder: Path) -> None:
        stub = folder / "bin" / "preftune"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\nexec {sys.executable} -m preftune "$@"\n')
        stub.chmod(0o755)
        path = f"{stub.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.until(r"> $")
        self.type("bind 'set bell-style none'; source <(preftune completion bash); echo rea''dy\n")
        self.until("ready\r\n> $")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, pattern: str) -> str:
        """Return what the terminal shows up to a match of the pattern."""
        shown, end = "", time.monotonic() + 120
        while not re.search(pattern, shown):
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {shown!r}"
            shown += os.read(self.terminal, 4096).decode(errors="replace")
        return shown

    def completed(self, line: str, pattern: str) -> None:
        """Type a line and Tab, and wait until the line is as in the pattern. Then discard it."""
        self.type(f"{line}\t")
        self.until(pattern)
        self.type("\x15\n")  # not Ctrl-C, which is lost while the shell begins to wait
        self.until(r"> $")


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    shell = Bash(tmp_path)
    yield shell
    os.kill(shell.pid, signal.SIGHUP)
    os.close(shell.terminal)
    os.waitpid(shell.pid, 0)


def test_bash_completes_keys_values_and_files(bash: Bash) -> None:
    bash.completed("preftune dpo optim.l", r"optim\.lr=$")
    bash.completed("preftune dpo optim.schedule=lin", r"optim\.schedule=linear $")
    bash.completed("preftune dpo data.train=my", r"data\.train=my\\ prefs\.jsonl $")
    bash.completed("preftune score --policy ru", r"--policy run")  # runs/ and run.yaml
