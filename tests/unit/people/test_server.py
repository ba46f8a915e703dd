"""The page over real HTTP: who is let in, what is shown, and what is saved."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from preftune.errors import ConfigError, StorageError
from preftune.people.pairs import Pair
from preftune.people.server import MAX_BODY, Site, serving
from preftune.people.verdicts import Verdicts

EVIL = "<script>alert(1)</script>"
PAIRS = [Pair(f"prompt {i}", f"{EVIL} {i}", "second", origin="model-x.jsonl:1") for i in range(4)]


class Client:
    """Sends requests as a browser does, unless a test changes them."""

    def __init__(self, url: str, site: Site) -> None:
        self.url, self.site = urlsplit(url), site
        self.path, self.host = self.url.path, str(self.url.netloc)

    def send(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.url.port or 0, timeout=20)
        all_headers: dict[str, str | None] = {"Host": self.host}
        if method == "POST":
            all_headers |= {"Origin": f"http://{self.host}", "Sec-Fetch-Site": "same-origin"}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Content-Length": str(len(data)), **all_headers}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        content, kind = answer.read(), answer.headers["Content-Type"]
        connection.close()
        return answer.status, json.loads(content) if kind == "application/json" and content else content, answer.headers

    def get(self, name: str = "", **headers: str | None) -> tuple[int, Any, Any]:
        return self.send("GET", self.path + name, **headers)

    def post(self, name: str, body: Any, **headers: str | None) -> tuple[int, Any, Any]:
        return self.send("POST", self.path + name, body, **headers)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        site = Site(verdicts)
        with serving(site) as url:
            yield Client(url, site)


def verdict(pair: str, **more: Any) -> dict[str, Any]:
    return {"annotator": "ana", "pair": pair, "choice": "a", "comment": " why ", "seconds": 1.23, **more}


def lines(client: Client) -> list[str]:
    return client.site.verdicts.path.read_text().splitlines()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_without_the_token_every_request_is_refused(client: Client, method: str) -> None:
    token = client.path.strip("/")
    for path in ("/", "/state", f"/{token}", f"/{token[:-1]}/", f"/{token}x/", f"/x/{token}/", f"/?{token}/", "/é/"):
        status, _, headers = client.send(method, path.encode("ascii", "ignore").decode(), b"{}")
        assert status == 403, path
        assert token not in str(headers)
    assert len(lines(client)) == 1


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "192.168.0.7", None])
def test_a_rebound_host_name_is_refused(client: Client, host: str | None) -> None:
    assert client.get(Host=host)[0] == 403
    client.host = str(host)
    assert client.post("undo", {"annotator": "ana"}, Host=host)[0] == 403


def test_localhost_and_a_forwarded_port_are_accepted(client: Client) -> None:
    for host in ("localhost:9000", "127.0.0.1", f"localhost:{client.url.port}"):
        assert client.get(Host=host)[0] == 200
        origin = f"http://{host}"
        assert client.post("undo", {"annotator": "ana"}, Host=host, Origin=origin)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_post_from_elsewhere_is_refused(client: Client, headers: dict[str, str | None]) -> None:
    assert client.post("verdict", verdict(PAIRS[0].key), **headers)[0] == 403
    assert len(lines(client)) == 1


def test_the_page_loads_nothing_from_outside_and_has_a_strict_policy(client: Client) -> None:
    for name in ("", "page.css", "page.js"):
        status, content, headers = client.get(name)
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert b"http:" not in content
        assert b"https:" not in content
        assert b"innerHTML" not in content
    assert client.get("other")[0] == client.post("other", {})[0] == 404


def test_the_state_shows_both_responses_and_no_name_of_a_file(client: Client) -> None:
    assert client.get("state")[1] == {}
    state = client.get("state?annotator=ana")[1]
    shown = {r["turns"][0]["text"] for r in state["pair"]["responses"]}
    assert shown == {f"{EVIL} 0", "second"}
    assert "model-x" not in json.dumps(state)
    assert (state["judged"], state["remaining"]) == (0, 4)


def test_a_verdict_is_in_the_journal_when_the_answer_arrives(client: Client) -> None:
    state = client.post("verdict", verdict(PAIRS[0].key))[1]
    row = json.loads(lines(client)[-1])
    assert (row["annotator"], row["comment"], row["seconds"]) == ("ana", "why", 1.2)
    assert row["verdict"] == row["left"]
    assert state["saved"]
    assert state["pair"]["id"] == PAIRS[1].key
    again = client.post("verdict", verdict(PAIRS[0].key, choice="b"))[1]
    assert not again["saved"]
    assert client.post("undo", {"annotator": "ana"})[1]["pair"]["id"] == PAIRS[0].key


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 30_000,
        {**verdict("none")},
        verdict(PAIRS[0].key, choice="c"),
        verdict(PAIRS[0].key, choice=["a"]),
        verdict(["x"]),  # type: ignore[arg-type]
        verdict(PAIRS[0].key, annotator=""),
        verdict(PAIRS[0].key, annotator="a\nb"),
        verdict(PAIRS[0].key, annotator="x" * 41),
        verdict(PAIRS[0].key, annotator=7),
        verdict(PAIRS[0].key, comment=7),
        verdict(PAIRS[0].key, comment="x" * 10_001),
    ],
)
def test_malformed_verdicts_are_refused_and_not_saved(client: Client, body: Any) -> None:
    status, answer, _ = client.post("verdict", body)
    assert status == 400
    assert answer["error"]
    assert len(lines(client)) == 1


def test_odd_values_of_optional_fields_are_saved_as_valid_json(client: Client) -> None:
    for pair, seconds in zip(PAIRS, (None, True, -1, float("nan")), strict=True):
        assert client.post("verdict", verdict(pair.key, seconds=seconds, comment="\ud800é\n"))[0] == 200
    assert all("seconds" not in json.loads(line) for line in lines(client))


def test_a_body_that_is_too_long_is_not_read(client: Client) -> None:
    assert client.post("verdict", b"", Content_Length=str(MAX_BODY + 1))[0] == 413
    assert client.post("verdict", b"", Content_Length="-1")[0] == 413


def test_the_name_of_the_only_annotator_is_fixed(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        site = Site(verdicts, "ana")
        with serving(site) as url:
            client = Client(url, site)
            assert client.get("state")[1]["annotator"] == "ana"
            client.post("verdict", verdict(PAIRS[0].key, annotator="eve"))
            assert list(verdicts.judged()) == ["ana"]


def test_finish_ends_the_wait(client: Client) -> None:
    assert client.post("finish", {})[1] == {"finished": True}
    assert client.site.finished.is_set()


def test_a_full_disk_ends_the_command_with_its_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> bool:
        raise StorageError("no space left", where="v.jsonl")

    monkeypatch.setattr(Verdicts, "judge", full)
    assert client.post("verdict", verdict(PAIRS[0].key))[0] == 507
    assert client.site.finished.is_set()
    assert isinstance(client.site.error, StorageError)


def test_a_port_in_use_is_reported(client: Client) -> None:
    with pytest.raises(ConfigError, match="cannot be used"), serving(client.site, client.url.port or 0):
        pass
