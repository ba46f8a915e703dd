"""The page on which people judge, served on the loopback interface.

    GET  /TOKEN/           the page; /TOKEN/page.css and /TOKEN/page.js belong to it
    GET  /TOKEN/state      ?annotator=NAME: the pair to judge and the progress, as JSON; {} if a name is needed first
    POST /TOKEN/verdict    {annotator, pair, choice, comment, seconds}
    POST /TOKEN/undo       {annotator}
    POST /TOKEN/finish     end the command

Every request is refused with 403 if its path does not begin with the secret token, if its Host is not this machine (a
web page that has rebound its name to 127.0.0.1 has a different one), or if a POST does not come from the page.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from preftune.errors import ConfigError, PreftuneError
from preftune.people.pairs import first_is_left, turns
from preftune.people.verdicts import CHOICES, Verdicts, summary_lines

HOSTS = ("127.0.0.1", "localhost")
MAX_BODY = 64 * 1024  # bytes
MAX_NAME, MAX_COMMENT = 40, 10_000  # characters
PAGE = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css"), "page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(slots=True)
class Site:
    """What the page shows and changes.

    annotator  the only annotator; None: the page asks for a name
    finished   set when somebody has pressed Finish, or when a verdict could not be saved
    error      why a verdict could not be saved
    """

    verdicts: Verdicts
    annotator: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    finished: threading.Event = field(default_factory=threading.Event)
    error: PreftuneError | None = None

    def state(self, annotator: str) -> dict[str, Any]:
        """Return what the page shows to this annotator. The names of the models are not part of it."""
        verdicts, judged = self.verdicts, self.verdicts.judged()
        mine = judged.get(annotator, {})
        pair = verdicts.next_pair(annotator)
        state: dict[str, Any] = {
            "annotator": annotator,
            "judged": len(mine),
            "remaining": verdicts.remaining(annotator),
            "missing": verdicts.missing(),
            "summary": summary_lines(verdicts) if judged else [],
            "pair": None,
        }
        if pair:
            sides = [(pair.first, pair.ended[0]), (pair.second, pair.ended[1])]
            if not first_is_left(pair.key, annotator, verdicts.seed):
                sides.reverse()
            responses = [{"turns": turns(text), "ended": ended} for text, ended in sides]
            state["pair"] = {"id": pair.key, "prompt": turns(pair.prompt), "responses": responses}
        return state


class BadRequest(Exception):
    """A request that the page does not send."""


def annotator_name(text: Any) -> str:
    """Return a valid name of an annotator. Raises BadRequest."""
    name = text.strip() if isinstance(text, str) else ""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise BadRequest(f"an annotator's name has 1 to {MAX_NAME} printable characters")
    return name


@contextmanager
def serving(site: Site, port: int = 0) -> Iterator[str]:
    """Serve the page inside this context, and yield its URL. Port 0 takes a free one. Raises ConfigError."""

    class Bound(Handler):
        pass

    Bound.site = site
    try:
        server = Server(("127.0.0.1", port), Bound)
    except OSError as error:
        fix = "choose a different port, or 0 for a free one"
        raise ConfigError(f"port {port} cannot be used: {error.strerror}", where="--port", fix=fix) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{site.token}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    """The server, whose threads do not keep the process alive."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a browser closes a connection early."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of the page."""

    site: Site
    timeout = 30  # seconds without data
    server_version, sys_version = "preftune", ""
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """Read the request line and headers, and refuse what does not come from the page, whatever its method."""
        if not super().parse_request():
            return False
        reason = self._refusal()
        if reason:
            self._refuse(HTTPStatus.FORBIDDEN, reason)
        return not reason

    def _refusal(self) -> str:
        """Return why the request is refused, or ""."""
        token, slash, _ = self.path.removeprefix("/").partition("/")
        if not (slash and hmac.compare_digest(token.encode(), self.site.token.encode())):
            return "the address is not the one that preftune label has printed"
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or urlsplit(f"//{hosts[0]}").hostname not in HOSTS:
            return "the page can only be used on this machine"
        same = self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"  # not all browsers send it
        if self.command == "POST" and not (same and self.headers.get("Origin") == f"http://{hosts[0]}"):
            return "the request does not come from the page"
        return ""

    def do_GET(self) -> None:
        """Send the page or its state."""
        url = urlsplit(self.path)
        name = url.path.split("/", 2)[2]
        if name in PAGE:
            file, kind = PAGE[name]
            self._send(HTTPStatus.OK, (files("preftune.people") / file).read_bytes(), f"{kind}; charset=utf-8")
        elif name == "state":
            names = parse_qs(url.query).get("annotator", [])
            request = {"annotator": names[0]} if names else {}
            self._answer(lambda: self._state_of(request) if names or self.site.annotator else {})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """Save a verdict, withdraw the last one, or finish."""
        action = {"verdict": self._verdict, "undo": self._undo, "finish": self._finish}.get(self.path.split("/", 2)[2])
        if action is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= MAX_BODY):
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MAX_BODY} bytes and their number")
            return
        body = self.rfile.read(int(length))
        self._answer(lambda: action(_object(body)))

    def _annotator(self, request: Mapping[str, Any]) -> str:
        return self.site.annotator or annotator_name(request.get("annotator"))

    def _state_of(self, request: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {**self.site.state(self._annotator(request)), **more}

    def _verdict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        annotator, pair, choice = self._annotator(request), request.get("pair"), request.get("choice")
        comment, seconds = request.get("comment", ""), request.get("seconds")
        if not isinstance(pair, str) or pair not in self.site.verdicts.pairs or choice not in CHOICES:
            raise BadRequest("the pair or the choice does not exist")
        if not isinstance(comment, str) or len(comment) > MAX_COMMENT:
            raise BadRequest(f"a comment has at most {MAX_COMMENT} characters")
        timed = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < 1e9
        saved = self.site.verdicts.judge(
            annotator, pair, str(choice), comment.strip(), round(float(seconds or 0), 1) if timed else None
        )
        return self._state_of(request, saved=saved)

    def _undo(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._state_of(request, undone=self.site.verdicts.undo(self._annotator(request)))

    def _finish(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self.close_connection = True
        self.site.finished.set()
        return {"finished": True}

    def _answer(self, action: Any) -> None:
        """Send the result of `action` as JSON, or its error."""
        try:
            self._send(HTTPStatus.OK, json.dumps(action()).encode(), "application/json")
        except BadRequest as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except PreftuneError as error:  # the disk is full, for example: the command ends with this error
            self.site.error = error
            self.site.finished.set()
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body may be unread
        self._send(status, json.dumps({"error": reason}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        length = {"Content-Type": kind, "Content-Length": str(len(body))}
        closing = {"Connection": "close"} if self.close_connection else {}
        for name, value in {**HEADERS, **length, **closing}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the URL with the token must not be in logs."""


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises BadRequest."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    return value
