"""Compressed data files: all formats are read, and a damaged file is an error that names the file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from preftune.errors import DataError
from preftune.sources import compressed, tables
from preftune.sources.read import read

TEXTS = {
    "jsonl": '{"a": "é\u2028"}\n\n{"a": "2"}\n',
    "json": '[{"a": "é\u2028"},\n\n{"a": "2"}]',
    "csv": "a\né\u2028\n\n2\n",
    "tsv": "a\né\u2028\n\n2\n",
}
LINES = {"jsonl": [1, 3], "json": [1, 3], "csv": [2, 4], "tsv": [2, 4]}


def zst(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
    "ZST": zst,
}


def overwritten(raw: bytes) -> bytes:
    return raw[:1000] + bytes(200) + raw[1200:]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("packed", PACKERS)
def test_compressed_files_give_the_same_rows_and_lines_as_plain_files(tmp_path: Path, kind: str, packed: str) -> None:
    path = tmp_path / f"a.b.{kind}.{packed}"
    path.write_bytes(PACKERS[packed](TEXTS[kind].encode()))
    rows = list(read(str(path)))
    assert [row.value for row in rows] == [{"a": "é\u2028"}, {"a": "2"}]
    assert [row.origin for row in rows] == [f"{path}:{line}" for line in LINES[kind]]


def test_all_parts_of_a_file_of_several_compressed_parts_are_read(tmp_path: Path) -> None:
    for packed, pack in PACKERS.items():
        path = tmp_path / f"a.jsonl.{packed}"
        path.write_bytes(pack(b'{"a": 1}\n') + pack(b'{"a": 2}\n'))
        assert [row.value["a"] for row in read(str(path))] == [1, 2]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("packed", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize(
    "damage",
    [overwritten, lambda raw: raw[:1000], lambda raw: b"{" + raw[1:]],
    ids=["overwritten", "truncated", "wrong-magic"],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, kind: str, packed: str, damage: Any) -> None:
    path = tmp_path / f"a.{kind}.{packed}"
    lines = [json.dumps({"a": os.urandom(20).hex()}) for _ in range(200)]
    path.write_bytes(damage(PACKERS[packed]("\n".join(lines).encode())))
    message = rf"a.{kind}.{packed}: cannot be read: .*\n  fix: the file is damaged or truncated"
    with pytest.raises(DataError, match=message):
        list(read(str(path)))


def test_a_compressed_parquet_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"a.parquet.gz: .parquet.gz files are not supported"):
        list(read(str(path)))


@pytest.mark.parametrize(("kind", "packed"), [("jsonl", p) for p in PACKERS] + [("json", "gz"), ("csv", "gz")])
def test_a_decompression_bomb_is_refused_at_a_limit_that_depends_on_the_memory(
    tmp_path: Path, kind: str, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{kind}.{packed}"
    row = {"jsonl": '{"a": "0"}\n', "json": '{"a": "0"},', "csv": "0000000000\n"}[kind] * 300_000
    path.write_bytes(PACKERS[packed]({"json": "[", "csv": "a\n"}.get(kind, "").encode() + row.encode()))
    monkeypatch.setattr(compressed, "memory_bytes", lambda: 4_000_000)
    with pytest.raises(DataError, match=rf"a.{kind}.{packed}: the decompressed file has more than") as refused:
        list(read(str(path)))
    assert "decompress it yourself" in str(refused.value)


def test_repetitive_data_below_a_quarter_of_the_memory_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "0"}\n' * 50_000))
    assert sum(1 for _ in read(str(path))) == 50_000


def test_a_cell_of_more_than_64_mb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1_000_000)
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "x" * 1_000_001)
    with pytest.raises(DataError, match=r"a.csv:2: a cell is longer than 1 MB"):
        list(read(str(path)))
