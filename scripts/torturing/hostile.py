"""An HTTP server that answers in every wrong way. The first part of the path names the way."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CONTROL = "\x1b]0;owned\x07\x1b[31m\x9b2J\x00\x08\u202e"
LONG_S = 600.0
MEGABYTE = b"x" * 2**20


def completion(text: str) -> bytes:
    """Return a correct completion, which has the fields of texts and of chats."""
    choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "1", "object": "x", "model": "m", "choices": [choice]}).encode()


def reply(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an HTTP response."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode("latin-1", "replace") + body


def slow(wire: socket.socket, *_: object) -> None:
    """One byte at a time."""
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    for _second in range(int(LONG_S * 10)):
        wire.sendall(b" ")
        time.sleep(0.1)


def silent(*_: object) -> None:
    """No answer."""
    time.sleep(LONG_S)


def endless(wire: socket.socket, *_: object) -> None:
    """A body without an end."""
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    for _megabyte in range(4096):
        wire.sendall(b"100000\r\n" + MEGABYTE + b"\r\n")


def huge(wire: socket.socket, *_: object) -> None:
    """A body of 200 MB that is announced."""
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 209715200\r\n\r\n")
    for _megabyte in range(200):
        wire.sendall(MEGABYTE)


def events(wire: socket.socket, *_: object) -> None:
    """A stream of events with control characters and no end."""
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    for _event in range(2000):
        wire.sendall(b"data: " + completion(CONTROL) + b"\n\n")
        time.sleep(0.01)


def moved(wire: socket.socket, *_: object) -> None:
    """A redirect to another host."""
    wire.sendall(reply(b"", "307 Moved", "location: http://127.0.0.2:9/good/v1/completions\r\n"))


def moved_in_circles(wire: socket.socket, _: str, path: str) -> None:
    """A redirect to the same address."""
    wire.sendall(reply(b"", "307 Moved", f"location: {path}\r\n"))


def malformed(wire: socket.socket, *_: object) -> None:
    """A correct answer with wrong bytes."""
    body = bytearray(completion("A"))
    for _change in range(random.randint(1, 8)):
        body[random.randrange(len(body))] = random.randrange(256)
    wire.sendall(reply(bytes(body)))


def wrong_types(wire: socket.socket, *_: object) -> None:
    """JSON of another structure."""
    values: list[object] = [None, True, 0, -1.5, "x", [], {}, [[]], {"choices": 1}, {"choices": [None]}]
    odd: tuple[object, ...] = (None, 1, [], {}, [1])
    values += [{"choices": [{"text": value, "message": value}]} for value in odd]
    wire.sendall(reply(json.dumps(random.choice(values)).encode()))


def deep(wire: socket.socket, *_: object) -> None:
    """JSON that is nested very deeply."""
    wire.sendall(reply(b"[" * 200_000))


def drops(wire: socket.socket, *_: object) -> None:
    """The connection ends in the middle of an answer."""
    wire.sendall(reply(completion("A"))[: random.randrange(150)])


def resets(wire: socket.socket, *_: object) -> None:
    """The connection is reset."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def control(wire: socket.socket, *_: object) -> None:
    """A correct answer with control characters."""
    wire.sendall(reply(completion(CONTROL)))


def echoes(wire: socket.socket, request: str, *_: object) -> None:
    """An error that quotes the request, with its key, and control characters."""
    status = random.choice(
        ["400 Bad", "401 No", "403 No", "404 None", "422 Bad", "429 Later", "500 Broken", "503 Later"]
    )
    body = json.dumps({"error": {"message": request + CONTROL, "code": CONTROL}}).encode()
    wire.sendall(reply(body, status, f"retry-after: {random.choice(['0', '1e9', '-1', 'soon'])}\r\n"))


def answers_with_key(wire: socket.socket, request: str, *_: object) -> None:
    """A correct answer that quotes the request, with its key."""
    wire.sendall(reply(completion(request)))


def headers(wire: socket.socket, *_: object) -> None:
    """Headers that are too long, too many or not text."""
    odd = random.choice(["x: " + "y" * 10**6, "\r\n".join(f"x{i}: y" for i in range(5000)), "x\x00: \x1b[31m", ": "])
    wire.sendall(reply(completion("A"), headers=odd + "\r\n"))


def bomb(wire: socket.socket, *_: object) -> None:
    """A small compressed body that becomes large."""
    wire.sendall(reply(gzip.compress(bytes(2**28), 1), headers="content-encoding: gzip\r\n"))


def good(wire: socket.socket, *_: object) -> None:
    """A correct answer."""
    wire.sendall(reply(completion("The score is 7.\n7")))


WAYS: tuple[Callable[..., None], ...] = (
    *(slow, silent, endless, huge, events, moved, moved_in_circles, malformed, malformed, wrong_types, wrong_types),
    *(deep, drops, resets, control, echoes, echoes, answers_with_key, headers, bomb, good),
)


@contextmanager
def serving(seed: int) -> Iterator[str]:
    """Run the server in another process. Yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        random.seed(seed)
        with contextlib.suppress(BaseException):
            while True:
                wire, _ = listener.accept()
                threading.Thread(target=_answer, args=(wire,), daemon=True).start()
        os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _answer(wire: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError, IndexError), wire:
        wire.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request:
            part = wire.recv(65536)
            if not part:
                return
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        while len(body) < length:
            body += wire.recv(65536)
        path = head.split()[1].decode()
        way = next(way for way in WAYS if way.__name__ == path.split("/")[1])
        way(wire, head.decode("latin-1"), path)
