"""preftune chat with input from a pipe, and in a pseudo-terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.talk.test_session import CHATML, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import run

LIMIT_S = 240  # for a program that hangs; nothing depends on how long it takes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model, a second one, and a base model without a chat template."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "chat", CHATML, max_position_embeddings=20_000)
    save_model(folder / "other", CHATML, seed=1, max_position_embeddings=20_000)
    save_model(folder / "base", None, seed=2)
    return folder


def piped(text: str | bytes, *arguments: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return run(["chat", *map(str, arguments)])


def test_a_pipe_gets_only_the_answers(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [models / "chat", "--temperature", "0", "--max-tokens", "9"]
    assert piped("the cat\n", *arguments, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    tokenizer = AutoTokenizer.from_pretrained(models / "chat")
    model = AutoModelForCausalLM.from_pretrained(models / "chat")
    messages = [{"role": "user", "content": "the cat"}]
    row = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    reply = model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=9)
    assert out == tokenizer.decode(reply[0, row.shape[1] :], skip_special_tokens=True) + "\n"
    assert "temperature 0.0" in err
    assert "tokens" in err
    assert piped("the cat", *arguments, "-q", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr() == (out, "")


def test_two_models_in_a_pipe_answer_one_after_the_other(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefs = tmp_path / "prefs.jsonl"
    lines = f'the cat\n/better right\n"""\na dog\nran\n"""\n/save {tmp_path / "talk"}\n/quit\nnot read\n'
    arguments = [models / "chat", "--beside", models / "other", "--max-tokens", "6", "--prefs", prefs]
    assert piped(lines, *arguments, "--system", "Be brief.", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^(?:left|right): \w+$", out, re.M) == ["left: chat", "right: other"] * 2
    (row,) = [json.loads(line) for line in prefs.read_text().splitlines()]
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    (saved,) = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [message["content"] for message in saved["messages"][1:4:2]] == ["the cat", "a dog\nran"]
    assert saved["messages"][2:3] == row["chosen"]
    assert (tmp_path / "talk.md").read_text().startswith("# Chat with chat and other\n")
    assert f"1 pair added to {prefs}. Next: preftune data check" in err


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        ("/bettr\n", [], 2, "did you mean '/better'"),
        ("/set top_p 7\n", [], 2, "above 0, up to 1"),
        ('"""never closed', [], 2, "does not end"),
        (b"caf\xe9\n", [], 3, "stdin:1: not UTF-8"),
        ("x y " * 30_000, [], 3, "too long"),
        ("", ["--prefs", "a.jsonl"], 2, "need two answers"),
        ("", ["--plain", "--system", "x"], 2, "--system has no effect with --plain"),
        ("", ["--chat-template-kwargs", '{"thinking": true}'], 2, "does not read 'thinking'"),
        ("", ["--beside", "missing"], 4, "no such folder"),
        ("", ["--template", "no.jinja"], 4, "neither the name of a template"),
        ("", ["--top-p", "0"], 2, "top-p"),
        ("", [], 0, ""),
    ],
)
def test_the_first_error_in_a_pipe_ends_the_chat_with_its_exit_code(
    text: str | bytes,
    arguments: list[str],
    code: int,
    message: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert piped(text, models / "chat", *arguments, monkeypatch=monkeypatch) == code
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_a_base_model_continues_text_or_uses_the_dialogue_template(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [models / "base", "--max-tokens", "5"]
    assert piped("the cat\n", *arguments, monkeypatch=monkeypatch) == 0
    first = capsys.readouterr()
    assert "base has no chat template, so it continues your text." in first.err
    assert "add --template dialogue" in first.err
    assert piped("the cat\n", *arguments, "--template", "dialogue", monkeypatch=monkeypatch) == 0
    second = capsys.readouterr()
    assert "continues your text" not in second.err
    assert first.out != second.out


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, arguments: list[str], width: int = 100) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "INPUTRC": os.devnull}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "preftune", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            preexec_fn=own_terminal,
        )
        os.close(slave)
        self.output, self.read = "", 0

    def wait_for(self, pattern: str) -> str:
        """Read until the pattern appears in new output, and return the new output up to its end."""
        end = time.monotonic() + LIMIT_S
        while not (match := re.search(pattern, self.output[self.read :])):
            assert time.monotonic() < end, f"no {pattern!r} in {self.output[self.read :]!r}"
            if not select.select([self.master], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # Linux: the program has ended
                    raise
                data = b""
            assert data, f"the program ended: {self.output[self.read :]!r}"
            self.output += data.decode(errors="replace")
        begin, self.read = self.read, self.read + match.end()
        return self.output[begin : self.read]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        code = self.process.wait(LIMIT_S)
        os.close(self.master)
        return code


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Any:
    opened: list[Terminal] = []

    def start(*arguments: Any, **options: Any) -> Terminal:
        opened.append(Terminal([str(argument) for argument in arguments], **options))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
            one.end()


def test_a_chat_in_a_terminal(models: Path, terminal: Any, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and not the program, an error does not end the chat, lines can be edited and recalled."""
    chat = terminal(models / "chat", "--seed", "1", "--max-tokens", "9000", "--temperature", "2")
    chat.wait_for("/help lists the commands")
    chat.wait_for(">>> ")
    chat.type("\x03")  # at an empty prompt
    chat.wait_for(r"/quit or Ctrl-D ends the chat")
    chat.wait_for(">>> ")
    for _ in range(30):  # the model may end its answer before Ctrl-C arrives
        chat.type("the dog\x7f\x7f\x7fcat\n")  # Backspace
        chat.wait_for("(?s).{300}")  # more than the echo of the line: the answer has begun
        chat.type("\x03")
        if "; stopped]" in chat.wait_for(r"\[\d+ tokens, [\d.]+ tokens/s; stopped\]|/quit or Ctrl-D ends"):
            break
        chat.wait_for(">>> ")
    else:
        pytest.fail("Ctrl-C did not stop an answer")
    chat.wait_for(">>> ")
    chat.type("/set max_tokens 5\n/temperature 1\n")
    chat.wait_for("max_tokens 5, seed 1")
    chat.wait_for("unknown command '/temperature'")
    chat.wait_for(">>> ")
    chat.type("a dog\n")
    chat.wait_for(r"\[\d tokens.*\]")
    chat.wait_for(">>> ")
    chat.type("\x1b[A\n")  # recalls the last line
    chat.wait_for(r"\[\d tokens.*\]")
    chat.wait_for(">>> ")
    chat.type(f"/save {tmp_path / 'talk.jsonl'}\n")
    chat.wait_for("saved")
    chat.wait_for(">>> ")
    chat.type("\x04")
    assert chat.end() == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    questions = [message["content"] for message in messages if message["role"] == "user"]
    assert questions[-3:] == ["the cat", "a dog", "a dog"]
    assert set(questions[:-2]) == {"the cat"}


def test_two_models_in_a_terminal_answer_side_by_side(models: Path, terminal: Any, tmp_path: Path) -> None:
    """The columns are drawn in place, SIGTERM ends the chat with exit code 75, and marked pairs are on disk."""
    prefs = tmp_path / "prefs.jsonl"
    chat = terminal(models / "chat", "--beside", models / "other", "--max-tokens", "12", "--prefs", prefs)
    chat.wait_for(">>> ")
    chat.type("the cat\n")
    shown = chat.wait_for(r"\[left: \d+ tokens.*right: \d+ tokens.*\]")
    assert re.search(r"left: chat +\S +right: other", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown))
    chat.wait_for(">>> ")
    chat.type("/better left\n")
    chat.wait_for("pair 1 added to")
    chat.wait_for(">>> ")
    chat.process.send_signal(signal.SIGTERM)
    chat.wait_for("stopped")
    assert chat.end() == 75
    (row,) = [json.loads(line) for line in prefs.read_text().splitlines()]
    assert row["prompt"] == [{"role": "user", "content": "the cat"}]
