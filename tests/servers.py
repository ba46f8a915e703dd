"""Real HTTP servers on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from preftune.client import REFUSED_STATUSES


@contextmanager
def serving(base: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[Any]:
    """A server whose handler class is `base` with this state of its own and its `url`."""
    handler: Any = type("Handler", (base,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(handler: BaseHTTPRequestHandler, text: str) -> None:
    """The answer of a chat model."""
    message = {"role": "assistant", "content": text}
    _send(handler, 200, {"choices": [{"message": message, "finish_reason": "stop", "index": 0}]})


def refuse(handler: BaseHTTPRequestHandler, why: str) -> None:
    """The answer to a request that the server does not take."""
    _send(handler, 400, {"error": {"message": why}})


def _send(handler: BaseHTTPRequestHandler, status: int, reply: dict[str, Any]) -> None:
    payload = json.dumps(reply).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


SECONDS = {"slow": 1.5, "late": 0.4}
BROKEN = {
    "garbage": "<html>busy</html>",
    "empty": '{"choices": []}',
    "list": "[]",
    "null": '{"choices": null}',
    "dict": '{"choices": {"0": {"text": "x"}}}',
    "half": '{"choices": [{"text": "hi \\ud83d", "index": 0, "finish_reason": "stop"}], '
    '"usage": {"completion_tokens": "2"}}',
}


class Faulty(BaseHTTPRequestHandler):
    """Answers each prompt in the end, after every kind of failure."""

    protocol_version = "HTTP/1.1"
    failures: list[str]
    seen: list[dict[str, Any]]
    always: dict[str, str]  # what happens to a prompt every time
    retry_after = "0.05"
    answered = 0
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.seen.append(body)
            failure = self.always.get(str(body.get("prompt")), self.failures.pop(0) if self.failures else "")
        if failure == "drop":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if failure in SECONDS:
            time.sleep(SECONDS[failure])
        status = int(failure) if failure.isdigit() else 200
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "text": f" to {body.get('prompt')}"}
        if self.path == "/v1/chat/completions":
            choice["message"] = {"role": "assistant", "content": f"reply to {body['messages'][-1]['content']}"}
        good = json.dumps({"choices": [choice]})
        bad = json.dumps(
            {"error": {"message": "maximum context length is 512" if status in REFUSED_STATUSES else "later"}}
        )
        data = BROKEN.get(failure, good if status == 200 else bad).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", self.retry_after)
        if status == 200:  # before who asked can have it
            with self.lock:
                type(self).answered += 1
        self.end_headers()
        self.wfile.write(data)
