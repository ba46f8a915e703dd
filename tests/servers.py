"""HTTP servers on the loopback interface."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from preftune.client import REFUSED_STATUSES


@contextmanager
def serving(base: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[Any]:
    """Run a server. Yields its handler class: a subclass of `base` with the attributes `state` and `url`."""
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


def send_completion(handler: BaseHTTPRequestHandler, text: str) -> None:
    """Send the completion of a chat model."""
    message = {"role": "assistant", "content": text}
    _send(handler, 200, {"choices": [{"message": message, "finish_reason": "stop", "index": 0}]})


def send_rejection(handler: BaseHTTPRequestHandler, reason: str) -> None:
    """Reject a request with status 400."""
    _send(handler, 400, {"error": {"message": reason}})


def _send(handler: BaseHTTPRequestHandler, status: int, reply: dict[str, Any]) -> None:
    payload = json.dumps(reply).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """Serve the model in `folder` from another process."""
    pytest.importorskip("fastapi")
    port = free_port()
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                assert process.poll() is None, "transformers serve ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


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
    """Completes each prompt after the failures in `failures`."""

    protocol_version = "HTTP/1.1"
    failures: list[str]
    seen: list[dict[str, Any]]
    always: dict[str, str]  # failures of prompts that never succeed, by prompt
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
        if status == 200:  # before the client can receive the response
            with self.lock:
                type(self).answered += 1
        self.end_headers()
        self.wfile.write(data)
