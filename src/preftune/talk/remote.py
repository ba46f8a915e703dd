"""A model on an OpenAI-compatible server as a partner in a chat: its answers are streamed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from preftune.client import Client
from preftune.errors import ConfigError, did_you_mean
from preftune.formulas import step_seed
from preftune.model.generate import Sampling
from preftune.talk.dialogue import Answer
from preftune.types import Text

POLL_S = 0.05  # between two looks at whether the user stopped the answer
ATTEMPTS = 3  # a person waits, so fewer than in a batch of requests


@dataclass(frozen=True, slots=True)
class Remote:
    """A model on a server. The server applies the chat template and knows the context, so both are unknown here."""

    name: str
    client: Client
    limit: int | None = None
    has_template: bool = True


def open_remote(client: Client, say: Callable[[str], None]) -> Remote:
    """Return the model `client.model` of a server, or its only model for the name "". Raises ConfigError.

    A server that lists its models must have it. A server without such a list is trusted.
    """
    say(f"connecting to {client.url}")
    client = replace(client, attempts=ATTEMPTS)
    names = client.models()
    model = client.model or (names[0] if len(names) == 1 else "")
    if not model:
        what = "the server has several models" if names else "the server does not list its models"
        fix = f"name one: {', '.join(names[:20])}" if names else "pass its name: preftune chat NAME --server URL"
        raise ConfigError(what, where=client.url, fix=fix)
    if names and model not in names:
        what = f"the server has no model {model!r}; {did_you_mean(model, names)}"
        raise ConfigError(what, where=client.url, fix="pass the name under which the server knows the model")
    return Remote(model, client.of_model(model))


def speak(remote: Remote, prompt: Text, sampling: Sampling, k: int, stopped: Callable[[], bool]) -> Iterator[Answer]:
    """Yield the answer so far after each piece that arrives, and at last the whole answer.

    Reasoning that the server sends apart is shown between <think> and </think>. `tokens` are the server's count, or the
    number of pieces. Raises the errors of `Client.complete`; what has arrived until then is shown.
    """
    settings: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": step_seed(sampling.seed, k) & 0x7FFFFFFF,
    }
    if sampling.top_k:
        settings["extra_body"] = {"top_k": sampling.top_k}
    text, reasoning, number, ended, counted = "", False, 0, False, 0
    begin = time.perf_counter()
    for piece in _polled(lambda: remote.client.stream(prompt, **settings), stopped):
        number += bool(piece.text or piece.reasoning)
        if piece.reasoning:
            text += piece.reasoning if reasoning else f"<think>\n{piece.reasoning}"
            reasoning = True
        if piece.text:
            text += f"\n</think>\n\n{piece.text}" if reasoning else piece.text
            reasoning = False
        ended, counted = ended or piece.ended, piece.tokens or counted
        yield Answer(text, counted or number, ended, time.perf_counter() - begin)
    yield Answer(text, counted or number, ended, time.perf_counter() - begin)


def _polled(start: Callable[[], Iterator[Any]], stopped: Callable[[], bool]) -> Iterator[Any]:
    """Yield what an iterator yields in a thread, until `stopped`: a server may be silent for a long time."""
    arrived: queue.Queue[tuple[str, Any]] = queue.Queue()
    leave = threading.Event()

    def read() -> None:
        try:
            for piece in start():
                arrived.put(("piece", piece))
                if leave.is_set():
                    return
            arrived.put(("end", None))
        except BaseException as error:
            arrived.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    try:
        while not stopped():
            try:
                kind, value = arrived.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        leave.set()
