"""HTTP for servers that are not trusted: bounded in time and size, and never redirected to another host."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from preftune.errors import ConfigError

LARGEST_BODY = 32 * 2**20  # bytes of an answer, decompressed; the longest real ones have less than 1 MB
REDIRECTS = 5


class TooLargeError(httpx.ReadError):
    """An answer of more than LARGEST_BODY bytes."""


class BoundedClient(httpx.Client):
    """A client whose `timeout_s` bounds a whole answer: httpx itself restarts its time limit at each byte.

    The time of an answer that is streamed also counts from the request to its last byte.
    """

    def __init__(self, timeout_s: float) -> None:
        # identity: a few compressed bytes could become gigabytes
        super().__init__(timeout=timeout_s, headers={"Accept-Encoding": "identity"})
        self.timeout_s = timeout_s

    def __del__(self) -> None:
        with suppress(Exception):  # while the interpreter ends
            self.close()

    def send(self, request: httpx.Request, *, stream: bool = False, **settings: Any) -> httpx.Response:
        """Send a request. Raises ReadTimeout, TooLargeError, or ConfigError for a redirect to another host."""
        deadline = time.monotonic() + self.timeout_s
        settings["follow_redirects"] = False

        def answer() -> httpx.Response:
            response = self._sent(request, settings)
            response.stream = _Bounded(response, deadline)
            return response if stream else _complete(response)

        return _within(self.timeout_s, answer)

    def _sent(self, request: httpx.Request, settings: dict[str, Any]) -> httpx.Response:
        """Send a request and follow redirects to the same scheme, host and port."""
        for _ in range(REDIRECTS):
            response = super().send(request, stream=True, **settings)
            following = response.next_request
            if following is None:
                return response
            response.close()
            if _origin(following.url) != _origin(request.url):
                raise ConfigError(
                    f"the server redirects to another host: {_origin(following.url)}",
                    where=_origin(request.url),
                    why="prompts and the key would be sent there",
                    fix="write that URL yourself if you trust it",
                )
            request = following
        raise httpx.TooManyRedirects(f"more than {REDIRECTS} redirects", request=request)


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, up to a time and a size."""

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        self.stream, self.deadline, self.request = response.stream, deadline, response.request

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for piece in self.stream:
            size += len(piece)
            _require_size(size)
            if time.monotonic() > self.deadline:
                raise httpx.ReadTimeout("the answer took too long", request=self.request)
            yield piece

    def close(self) -> None:
        self.stream.close()


def _complete(response: httpx.Response) -> httpx.Response:
    """Read the whole body, decompressed up to LARGEST_BODY."""
    body = bytearray()
    try:
        for piece in response.iter_bytes(65536):
            body += piece
            _require_size(len(body))
    finally:
        response.close()
    encoding = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in encoding]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)


def _require_size(size: int) -> None:
    if size > LARGEST_BODY:
        raise TooLargeError(f"the answer is larger than {LARGEST_BODY // 2**20} MB")


def _within(seconds: float, work: Callable[[], httpx.Response]) -> httpx.Response:
    """Run `work` in a thread and leave it alone after `seconds`: sockets have no time limit for a whole answer."""
    result: list[httpx.Response] = []
    failure: list[BaseException] = []
    late = threading.Event()

    def run() -> None:
        try:
            response = work()
        except BaseException as error:
            failure.append(error)
            return
        result.append(response)
        if late.is_set():
            response.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        late.set()
        raise httpx.ReadTimeout(f"the answer took more than {seconds:g} s")
    return result[0]


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")


def require_safe_url(url: str, where: str, has_key: bool) -> None:
    """Raise ConfigError for a URL that holds a secret, or that would send prompts or the key where they must not go."""
    parts = urlsplit(url)
    fix = "name the environment variable that holds the key instead (--api-key-env)"
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the URL contains a user name or password, which would be saved", where=where, fix=fix)
    if parts.query or parts.fragment:
        raise ConfigError("the URL has a query, which may contain a key and would be saved", where=where, fix=fix)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"not a URL: {url!r}", where=where, fix="write for example http://127.0.0.1:8000/v1")
    addresses = _addresses(parts.hostname)
    if any(address.is_link_local for address in addresses):
        what = f"{parts.hostname} is a link-local address, where clouds serve their credentials"
        raise ConfigError(what, where=where, fix="use another address of the server")
    if has_key and parts.scheme == "http" and not all(address.is_private for address in addresses):
        what = f"the key would be sent without encryption to {parts.hostname}"
        raise ConfigError(what, where=where, fix="use https, or an address in your own network")


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the addresses of a host; none if its name is unknown, which the request itself will report."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
