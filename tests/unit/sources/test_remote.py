"""Files at URLs and patterns of file names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.conftest import write_jsonl

from preftune.errors import DataError
from preftune.sources import remote
from preftune.sources.files import read_file
from preftune.sources.parts import parts_of
from preftune.sources.read import fingerprint, read, require_sources


@pytest.fixture
def files() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    for name in "ab":
        text = "".join(json.dumps({"x": f"{name}{i}"}) + "\n" for i in range(3))
        system.pipe(f"/r/{name}.jsonl.gz", gzip.compress(text.encode(), mtime=0))
    system.pipe("/r/notes.txt", b"nothing")
    yield system
    system.rm("/r", recursive=True)


def values(name: str) -> list[str]:
    return [row.value["x"] for row in read(name)]


A, B = ["a0", "a1", "a2"], ["b0", "b1", "b2"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("memory://r/a.jsonl.gz", A),
        ("memory://r/*.gz", [*A, *B]),
        ("memory://r", [*A, *B]),
        ("memory://r/*.gz[2:4]", ["a2", "b0"]),
    ],
)
@pytest.mark.usefixtures("files")
def test_urls_are_read_as_files(name: str, expected: list[str]) -> None:
    assert values(name) == expected
    assert [row.value["x"] for row in parts_of(name).rows()] == expected
    assert [row.origin for row in read("memory://r/b.jsonl.gz")][1] == "memory://r/b.jsonl.gz:2"


def test_a_file_is_downloaded_again_only_if_it_changes(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, opened = "memory://r/a.jsonl.gz", []
    before, stamp = fingerprint(name), parts_of(name).stamp
    original = remote.RemoteFile.open
    monkeypatch.setattr(remote.RemoteFile, "open", lambda self: opened.append(self.url) or original(self))
    assert values(name) == A
    assert opened == []
    files.pipe("/r/a.jsonl.gz", gzip.compress(b'{"x": "new"}\n'))
    assert values(name) == ["new"]
    assert opened == [name]
    assert fingerprint(name) != before
    assert parts_of(name).stamp != stamp


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl.zst", ".csv", ".json"])
def test_every_kind_of_file_can_be_streamed(tmp_path: Path, files: Any, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"x": f"v{i}"} for i in range(3)]
    path, table = tmp_path / f"rows{suffix}", pyarrow.Table.from_pylist(rows)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif suffix == ".arrow":
        with pyarrow.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif suffix == ".csv":
        path.write_text("x\nv0\nv1\nv2\n")
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))
    files.pipe(f"/r/rows{suffix}", path.read_bytes())
    (file,) = remote.remote_files(f"memory://r/rows{suffix}")
    assert [row.value for row in read_file(file, "rows")] == [row.value for row in read_file(path, "rows")] == rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://r/none.jsonl", "no such file"),
        ("memory://r/*.csv", "no such file"),
        ("unknown://r/a.jsonl", "fsspec does not know the protocol unknown://"),
    ],
)
@pytest.mark.usefixtures("files")
def test_urls_that_cannot_be_read(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_sources(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(DataError, match="s3:// needs a package that is not installed: Install s3fs"):
        list(read("s3://bucket/a.jsonl"))


def test_a_failed_request_names_the_url(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(files), "open", failing)
    with pytest.raises(DataError, match=r"memory://r/a\.jsonl\.gz: cannot be read: no answer"):
        values("memory://r/a.jsonl.gz")


def test_patterns_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("d/b.jsonl", "d/a.jsonl", "d/e/c.jsonl"):
        write_jsonl(Path(name), [{"x": name}])
    Path("d/readme.md").write_text("text")
    notes: list[str] = []
    assert [row.origin for row in read("d/*", lambda text, _: notes.append(text))] == ["d/a.jsonl:1", "d/b.jsonl:1"]
    assert notes == ["not read because their file type is unknown: d/readme.md"]
    assert values("d/**/*.jsonl") == ["d/a.jsonl", "d/b.jsonl", "d/e/c.jsonl"]
    with pytest.raises(DataError, match=r"no data file matches the pattern, only d/readme.md"):
        values("d/*.md")
