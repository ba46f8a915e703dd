"""A chat with models on an OpenAI-compatible server over HTTP."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.servers import serving
from tests.unit.talk.test_session import CHATML, save_model

from preftune.cli.main import run as command
from preftune.client import Client
from preftune.errors import ConfigError, IncompleteError
from preftune.model.generate import Sampling
from preftune.talk.dialogue import Dialogue
from preftune.talk.screen import Screen
from preftune.talk.session import Session
from preftune.talk.speakers import OpenOptions, open_speakers

pytest.importorskip("openai")
SAMPLING = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=3, seed=1)


class Streaming(BaseHTTPRequestHandler):
    """Streams words; the class attributes say which, and what goes wrong."""

    requests: list[dict[str, Any]]
    models: list[str]
    pieces: list[dict[str, Any]]
    finish: str = "stop"
    failures: int = 0
    breaks: bool = False
    pause: threading.Event | None = None

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append({**body, "path": self.path})
        if self.failures:
            type(self).failures -= 1
            self.reply({"error": {"message": "busy"}}, 503)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chat = self.path.endswith("/chat/completions")
        for piece in self.pieces:
            self.event({"delta": piece, "index": 0} if chat else {"text": piece["content"], "index": 0})
            if self.pause:
                self.pause.wait(60)
        if self.breaks:
            self.event_text('{"error": {"message": "the model crashed"}}')
            return
        end: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        self.event({**end, "delta": {}} if chat else {**end, "text": ""}, {"completion_tokens": 42})
        self.event_text("[DONE]")

    def event(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> None:
        chunk = {"id": "1", "object": "chunk", "created": 1, "model": "m", "choices": [choice]}
        self.event_text(json.dumps({**chunk, **({"usage": usage} if usage else {})}))

    def event_text(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def reply(self, body: dict[str, Any], status: int = 200) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@pytest.fixture
def server() -> Iterator[Any]:
    pieces = [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo ü"}]
    with serving(Streaming, requests=[], models=["tuned", "base"], pieces=pieces) as handler:
        yield handler


@pytest.fixture
def chat(server: Any) -> Callable[..., Session]:
    def open_chat(*models: str, plain: bool = False, at: tuple[bool, ...] = (True, True)) -> Session:
        messages: list[str] = []
        clients = tuple(
            Client(server.url, model, pause_s=0.01) if there else None for model, there in zip(models, at, strict=False)
        )
        speakers = open_speakers(OpenOptions(models, servers=clients), messages.append)
        screen = Screen(models, False, Console(file=io.StringIO()))
        return Session(speakers, Dialogue(plain), SAMPLING, screen, messages.append)

    return open_chat


def last(session: Session, side: int = 0) -> Any:
    return session.dialogue.turns[-1].answers[side]


def test_answers_are_streamed_and_the_dialogue_is_sent_again(
    chat: Any, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    session = chat("tuned")
    session.handle("/system Be brief.")
    session.handle("Hi")
    session.handle("Again")
    assert (last(session).text, last(session).ended, last(session).tokens) == ("Hello ü", True, 42)
    assert capsys.readouterr().out.count("Hello ü\n") == 2
    first, second = server.requests
    assert {name: first[name] for name in ("model", "stream", "temperature", "top_p", "top_k", "max_tokens")} == {
        "model": "tuned", "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_tokens": 7,
    }  # fmt: skip
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello ü"},
        {"role": "user", "content": "Again"},
    ]
    session.handle("/retry")
    assert server.requests[2]["seed"] != second["seed"]


def test_two_models_of_servers_and_a_local_one_answer_side_by_side(chat: Any, server: Any, tmp_path: Path) -> None:
    session = chat("tuned", "base")
    session.handle("Hi")
    assert [request["model"] for request in server.requests] == ["tuned", "base"]
    local = save_model(tmp_path / "model", CHATML)
    session = chat("tuned", str(local), at=(True, False))
    session.handle("the cat")
    assert last(session).text == "Hello ü"
    assert 0 < last(session, 1).tokens <= 7


def test_plain_texts_are_completed(chat: Any, server: Any) -> None:
    session = chat("tuned", plain=True)
    session.handle("once")
    assert server.requests[0]["path"].endswith("/v1/completions")
    assert server.requests[0]["prompt"] == "once"
    assert last(session).text == "Hello ü"


def test_reasoning_is_shown_and_a_cut_off_answer_is_marked(chat: Any, server: Any) -> None:
    server.pieces = [{"reasoning_content": "let me"}, {"reasoning_content": " see"}, {"content": "Yes"}]
    server.finish = "length"
    session = chat("tuned")
    session.handle("Hi")
    assert last(session).text == "<think>\nlet me see\n</think>\n\nYes"
    assert not last(session).ended


def test_a_busy_server_is_asked_again_and_a_broken_answer_is_an_error(chat: Any, server: Any) -> None:
    server.failures = 2
    session = chat("tuned")
    session.handle("Hi")
    assert last(session).text == "Hello ü"
    server.breaks = True
    with pytest.raises(IncompleteError, match="the model crashed"):
        session.handle("Hi again")
    assert len(session.dialogue.turns) == 1


def test_an_answer_can_be_stopped_while_the_server_is_silent(chat: Any, server: Any) -> None:
    from preftune.talk.remote import speak

    server.pause = threading.Event()
    stopped: list[bool] = []
    (speaker,) = chat("tuned").speakers
    answers = speak(speaker, "Hi", SAMPLING, 0, lambda: bool(stopped))
    next(answers)
    stopped.append(True)
    assert not list(answers)[-1].ended  # ends although the server sends nothing
    server.pause.set()


def test_the_model_is_checked_when_the_chat_begins(server: Any, chat: Any) -> None:
    with pytest.raises(ConfigError, match="no model 'tunde'; did you mean 'tuned'"):
        chat("tunde")
    with pytest.raises(ConfigError, match="several models"):
        chat("")
    server.models = ["only"]
    assert chat("").speakers[0].name == "only"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the model is missing"),
        (["m", "--beside-server", "http://127.0.0.1:1"], "there is no --beside"),
        (["m", "--server", "http://127.0.0.1:1", "--chat-template", "dialogue"], "has no effect on a server"),
        (["m", "--server-settings", '{"a": 1}'], "no server URL is set"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["chat", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_talks_to_a_server(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert command(["chat", "tuned", "--server", server.url]) == 0
    assert capsys.readouterr().out == "Hello ü\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert command(["chat", "--server", "http://127.0.0.1:9", "--timeout", "1"]) == 9
    assert "http://127.0.0.1:9" in capsys.readouterr().err
