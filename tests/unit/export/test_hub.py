"""Uploads to a server on the loopback interface that answers as the Hub does: private by default, only on request."""

from __future__ import annotations

import base64
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tests.servers import serving

from preftune.errors import ConfigError, IncompleteError
from preftune.export.run import ExportOptions, run
from preftune.train.display import Display

QUIET = Display(quiet=True)


class Hub(BaseHTTPRequestHandler):
    """The endpoints of an upload: repository, kinds of upload, large files, commit."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, Any]]
    files: dict[str, bytes]
    requests: list[tuple[str, str, str | None]]
    url: str
    status = 200

    def log_message(self, *_: Any) -> None: ...

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 404:
            self.send_header("x-error-code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def do_GET(self) -> None:
        self.requests.append(("GET", self.path, self.headers.get("authorization")))
        match = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
        state = self.repositories.get(match[1]) if match else None
        if state is None:
            return self.reply(404, {"error": "not found"})
        return self.reply(200, {"id": match[1] if match else "", "siblings": [], "tags": [], "sha": "0" * 40, **state})

    def do_POST(self) -> None:
        data = self.body()
        self.requests.append(("POST", self.path, self.headers.get("authorization")))
        if self.status != 200:
            return self.reply(self.status, {"error": "no"})
        if self.path == "/api/repos/create":
            body = json.loads(data)
            name = f"{body['organization']}/{body['name']}"
            self.repositories.setdefault(name, {"private": body.get("private", body.get("visibility") == "private")})
            return self.reply(200, {"url": f"{self.url}/{name}"})
        if self.path.endswith("/preupload/main"):
            files = [
                {**entry, "uploadMode": "lfs" if entry["path"].endswith(".safetensors") else "regular"}
                for entry in json.loads(data)["files"]
            ]
            names = [{"path": f["path"], "uploadMode": f["uploadMode"], "shouldIgnore": False} for f in files]
            return self.reply(200, {"files": names})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.url}/lfs/{entry['oid']}", "header": {}}}}
                for entry in json.loads(data)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if "/commit/main" in self.path:
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                if entry["key"] == "lfsFile":
                    self.files[entry["value"]["path"]] = self.files.pop(entry["value"]["oid"])
            return self.reply(
                200, {"commitUrl": f"{self.url}/me/my-model/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
            )
        return self.reply(200, {})

    def do_PUT(self) -> None:
        self.files[self.path.rpartition("/")[2].partition("?")[0]] = self.body()
        self.reply(200, {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with serving(Hub, repositories={}, files={}, requests=[]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def options(**changes: Any) -> ExportOptions:
    return ExportOptions("hub", **{"merge": True, "repository": "me/my-model", "confirmed": True, **changes})


@pytest.mark.filterwarnings("ignore")
def test_all_files_are_uploaded_to_a_private_repository(lora_run: Path, tmp_path: Path, hub: Any) -> None:
    out = run(str(lora_run), options(), tmp_path / "m", QUIET)
    written = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert hub.files == written
    assert hub.repositories == {"me/my-model": {"private": True}}
    assert {token for method, path, token in hub.requests if path.startswith("/api")} == {"Bearer hf_secret"}
    assert not any(b"hf_secret" in content or b"secret-place/" in content for content in written.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repository": None}, "not set"),
        ({"repository": "my-model"}, "USER/NAME"),
        ({"confirmed": False}, "not confirmed"),
        ({"merge": False}, "local folder"),
    ],
)
def test_nothing_is_sent_without_everything_that_is_needed(
    lora_run: Path, tmp_path: Path, hub: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(str(lora_run), options(**changes), tmp_path / "m", QUIET)
    assert hub.requests == []


def test_nothing_is_sent_without_a_token(
    lora_run: Path, tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        run(str(lora_run), options(), tmp_path / "m", QUIET)
    assert hub.requests == []


def test_an_existing_public_repository_is_refused(base_model: Path, tmp_path: Path, hub: Any) -> None:
    hub.repositories["me/my-model"] = {"private": False}
    with pytest.raises(ConfigError, match="is public"):
        run(str(base_model), options(merge=False), tmp_path / "m", QUIET)
    assert hub.files == {}


@pytest.mark.filterwarnings("ignore")
def test_a_refused_upload_keeps_the_folder(base_model: Path, tmp_path: Path, hub: Any) -> None:
    hub.status = 403
    with pytest.raises(IncompleteError, match="upload failed"):
        run(str(base_model), options(merge=False), tmp_path / "m", QUIET)
    assert (tmp_path / "m" / "model.safetensors").is_file()
