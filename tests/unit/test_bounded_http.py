"""Answers of servers are bounded in time and size, and keys stay where they belong."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from tests.servers import serving

from preftune import bounded_http
from preftune.bounded_http import BoundedClient, TooLargeError, require_safe_url
from preftune.client import Client, Reply, parse_settings
from preftune.errors import ConfigError, IncompleteError

KEY = "sk-canary-7f3a"
GOOD = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "text": f"your key is {KEY}"}]}).encode()


class Hostile(BaseHTTPRequestHandler):
    """Answers as its path says."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]]
    target = ""

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, self.headers.get("authorization", "")))
        with suppress(OSError):
            self._answer(self.path.split("/")[1])

    def _answer(self, kind: str) -> None:
        if kind == "headers":  # one byte at a time
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        body = {"bomb": gzip.compress(bytes(4000)), "large": bytes(4000), "echo": b'{"error": {"message": "bad %s"}}'}
        data = body.get(kind, GOOD).replace(b"%s", KEY.encode())
        self.send_response({"elsewhere": 307, "here": 308, "echo": 401}.get(kind, 200))
        if kind in ("elsewhere", "here"):
            self.send_header("location", f"{self.target if kind == 'elsewhere' else ''}/v1/completions")
        if kind == "bomb":
            self.send_header("content-encoding", "gzip")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        for n in range(0, len(data), 10):
            self.wfile.write(data[n : n + 10])
            self.wfile.flush()
            time.sleep(0.1 if kind == "body" else 0)


def reply(url: str, attempts: int = 6) -> Reply:
    client = Client(url, "m", "KEY", attempts=attempts)
    return next(client.run_all([lambda: client.complete("a")]))[1]


@pytest.fixture
def server() -> Iterator[Any]:
    with serving(Hostile, seen=[]) as handler:
        yield handler


@pytest.mark.parametrize("kind", ["headers", "body"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_trickles_ends_at_the_time_limit(server: Any, kind: str, stream: bool) -> None:
    with BoundedClient(0.4) as client:
        request = client.build_request("POST", f"{server.url}/{kind}/", content=b"x")
        with pytest.raises(httpx.ReadTimeout):
            client.send(request, stream=stream).read()


@pytest.mark.parametrize("kind", ["large", "bomb"])
def test_an_answer_is_bounded_in_size_after_decompression(
    server: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BoundedClient(5) as client:
        assert len(client.post(f"{server.url}/{kind}/", content=b"x").content) == 4000
        monkeypatch.setattr(bounded_http, "LARGEST_BODY", 3000)
        with pytest.raises(TooLargeError):
            client.post(f"{server.url}/{kind}/", content=b"x")


def test_a_redirect_is_followed_only_on_the_same_host(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY)
    with serving(Hostile, seen=[]) as other:
        server.target = other.url
        with pytest.raises(ConfigError, match="redirects to another host"):
            reply(f"{server.url}/elsewhere")
        assert other.seen == []
    assert reply(f"{server.url}/here").ended
    assert server.seen[-1] == ("/v1/completions", f"Bearer {KEY}")


def test_the_key_is_in_no_message_and_no_reply(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY)
    with pytest.raises(ConfigError, match="401 bad") as refused:
        reply(f"{server.url}/echo")
    assert KEY not in str(refused.value)
    assert refused.value.__suppress_context__
    assert reply(f"{server.url}/good").text == "your key is [key]"


def test_a_failure_names_its_cause(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setattr(bounded_http, "LARGEST_BODY", 3000)
    with pytest.raises(IncompleteError, match="larger than 0 MB"):
        reply(f"{server.url}/large", attempts=1)


@pytest.mark.parametrize(
    ("url", "has_key", "what"),
    [
        ("http://user:pass@127.0.0.1/v1", False, "user name or password"),
        ("https://example.org/v1?key=abc", False, "a query"),
        ("http://169.254.169.254/v1", False, "link-local"),
        ("http://8.8.8.8/v1", True, "without encryption"),
        ("127.0.0.1:8000", False, "not a URL"),
    ],
)
def test_an_unsafe_url_is_refused(url: str, has_key: bool, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        require_safe_url(url, "--server", has_key)
    assert not any(secret in str(refused.value) for secret in ("pass@", "abc"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://10.1.2.3/v1", "https://8.8.8.8", "http://no.such.invalid"]
)
def test_other_urls_are_accepted(url: str) -> None:
    require_safe_url(url, "--server", has_key=True)


@pytest.mark.parametrize(
    "settings",
    ['{"api_key": "abc"}', '{"extra_headers": {}}', '{"a": [{"Authorization": "abc"}]}', '{"api_key": "abc"'],
)
def test_settings_hold_no_secret(settings: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(settings, "--server-settings")
    assert "abc" not in str(refused.value)
    assert parse_settings('{"max_tokens": 5, "stop_token_ids": [1]}', "") == {"max_tokens": 5, "stop_token_ids": [1]}


def test_a_record_of_a_client_holds_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY", KEY)
    client = Client("http://127.0.0.1:1", "m", "KEY")
    assert KEY not in f"{client.record} {client.name} {client!r}"
