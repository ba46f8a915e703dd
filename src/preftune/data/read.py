"""Files, folders and Hub ids -> rows, each with the place it came from. Nothing is skipped here."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from preftune import objects
from preftune.errors import DataError

MAX_LINE_BYTES = 64_000_000
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".gz", ".tsv", ".txt")
HUB_ID = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.\[\]%-]+))?$")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a data file. `fault` says why it could not be read, if so."""

    value: dict[str, Any]
    origin: str
    fault: str = ""


def read(source: str | Sequence[str]) -> Iterator[Row]:
    """The rows of `source`: a file, a folder, a Hub id, or several of them.

    Raises DataError if there is no such thing or the file as a whole cannot be read; a single unreadable
    line of a JSONL file becomes a Row with a `fault`.
    """
    for one in [source] if isinstance(source, str) else source:
        held = objects.rows(one)
        if held:
            yield from (_row(value, f"{held.label}[{i}]") for i, value in enumerate(held.rows))
            continue
        path = _local(one)
        if path.is_file():
            yield from _read_file(path, str(one))
        elif path.is_dir() or _is_hub_id(one) or _folder_split(one):
            yield from _read_dataset(one)
        else:
            raise DataError("no such file", where=one, fix=_nearby(path))


def fingerprint(source: str | Sequence[str]) -> str:
    """A hash of the bytes of all files of `source`; Hub ids and folders enter by name."""
    digest = hashlib.sha256()
    for one in [source] if isinstance(source, str) else source:
        digest.update(b"\0source\0")
        held = objects.rows(one)
        if held:
            digest.update(held.digest.encode())
            continue
        path = _local(one)
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(one.encode())
    return digest.hexdigest()


def _local(name: str) -> Path:
    """The path that a name means on this machine."""
    if not name.strip():
        raise DataError("no file: the name is empty", where="data")
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, no permission, no such user
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=name[:200]) from None
    return path


def _is_hub_id(name: str) -> bool:
    """Whether a name that is no local file can be meant for the Hub: `data/missing.jsonl` is not asked for there."""
    match = HUB_ID.match(name)
    if not match or Path(match["name"]).suffix.lower() in FILE_SUFFIXES:
        return False
    return not Path(name.split("/")[0]).is_dir()


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to where the command runs"
    try:
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError:
        return f"the folder {path.parent} cannot be read"
    near = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"in {path.parent} there is: {', '.join(near) or 'nothing'}"


def _read_file(path: Path, name: str) -> Iterator[Row]:
    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if kind not in readers:
        fix = "use .jsonl, .json, .csv (also .gz) or .parquet"
        raise DataError(f"unknown file type {kind or '(none)'!r}", where=name, fix=fix)
    try:
        yield from readers[kind](path, name)
    except (OSError, EOFError, zlib.error) as error:
        fix = "the file is damaged or cut short: get it again" if path.suffix.lower() == ".gz" else ""
        raise DataError(f"cannot be read: {error}", where=name, fix=fix) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"not UTF-8 at byte {error.start}", where=f"{where}:{line}", fix="save it as UTF-8") from None


def _jsonl(path: Path, name: str) -> Iterator[Row]:
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            origin = f"{name}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"a line of more than {MAX_LINE_BYTES // 1_000_000} MB", where=origin)
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield Row({}, origin, f"not UTF-8 at byte {error.start} of the line")
                continue
            try:
                value = json.loads(line.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                yield Row({}, origin, f"broken JSON: {_json_fault(error)}")
                continue
            yield _row(value, origin)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "too deep" if isinstance(error, RecursionError) else "an integer of more digits than Python reads"


def _row(value: Any, origin: str) -> Row:
    if not isinstance(value, dict):
        return Row({}, origin, f"a row is an object with named fields, not {type(value).__name__}")
    return Row(value, origin)


def _json(path: Path, name: str) -> Iterator[Row]:
    """A list of records, or an object with one list of records in it; origins are line numbers all the same."""
    with _open(path) as file:
        text = _text(file.read(), name)
    start = _skip(text, 0)
    wrapped = text[start : start + 1] == "{"
    if wrapped:
        start = _list_inside(text, name)
    if text[start : start + 1] != "[":
        raise DataError("neither a list of records nor an object that holds one", where=name)
    at, line, counted = _skip(text, start + 1), 1, 0
    number, before = 0, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        # a file written on one line has many records there, and an origin is that of one record
        origin = f"{name}:{line}" if line != before else f"{name}:{line} (record {number})"
        before = line
        value, at, fault = _decode(text, at, name, line)
        yield Row({}, origin, fault) if fault else _row(value, origin)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            raise DataError("broken JSON: expected ',' or ']'", where=f"{name}:{line}")
    if not wrapped and text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise DataError("more text after the list of records", where=f"{name}:{line}", fix="put all into one list")


def _decode(text: str, at: int, name: str, line: int) -> tuple[Any, int, str]:
    """The value that begins at a place, where it ends, and why it cannot be used, if so."""
    try:
        try:
            return *json.JSONDecoder().raw_decode(text, at), ""
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # an integer beyond measure; the value ends where it would without it
            return *json.JSONDecoder(parse_int=str).raw_decode(text, at), f"broken JSON: {_json_fault(error)}"
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"{name}:{getattr(error, 'lineno', line)}"
        raise DataError(f"broken JSON: {getattr(error, 'msg', 'too deep')}", where=where) from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _list_inside(text: str, name: str) -> int:
    """Where the one list of a {"data": [...]} file begins."""
    found: list[tuple[str, int]] = []
    at = _skip(text, _skip(text, 0) + 1)
    while text[at : at + 1] != "}":
        key, at, _ = _decode(text, at, name, 1)
        begin = _skip(text, _skip(text, at) + 1)  # past the colon
        value, at, _ = _decode(text, begin, name, 1)
        if isinstance(value, list):
            found.append((key, begin))
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at : at + 1] == "," else at
    if text[at + 1 :].strip():
        line = text.count("\n", 0, at + 1) + 1
        fix = "if there is one record a line, name the file .jsonl"
        raise DataError("more text after the first record", where=f"{name}:{line}", fix=fix)
    if len(found) != 1:
        raise DataError(f"expected one list of records, found {[key for key, _ in found] or 'none'}", where=name)
    return found[0][1]


def _csv(path: Path, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        text = _text(file.read(), name)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    begins = 2
    try:
        for value in reader:
            origin = f"{name}:{begins}"
            begins = reader.line_num + 1
            if None in value or None in value.values():
                wide = f"expected {len(reader.fieldnames or ())} columns"
                yield Row({}, origin, f"wrong number of columns; {wide}")
            else:
                yield _csv_row(value, origin)
    except csv.Error as error:
        raise DataError(f"broken CSV: {error}", where=f"{name}:{reader.line_num}") from None


def _csv_row(value: dict[str, str], origin: str) -> Row:
    """A cell that holds a JSON list or object, as exports of chat data do, is read as that, any other as text."""
    cells: dict[str, Any] = dict(value)
    for key, cell in value.items():
        if cell[:1] in ("[", "{") and cell[-1:] in ("]", "}"):
            try:
                cells[key] = json.loads(cell)
            except json.JSONDecodeError:
                continue
            except (ValueError, RecursionError) as error:
                return Row({}, origin, f"column {key!r}: broken JSON: {_json_fault(error)}")
    return Row(cells, origin)


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
        for number, value in enumerate((value for batch in batches for value in batch.to_pylist()), start=1):
            yield Row(value, f"{name}:{number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"not a readable Parquet file: {error}", where=name) from error


def _folder_split(name: str) -> bool:
    folder, colon, _split = name.rpartition(":")
    return bool(colon) and _local(folder).is_dir()


def _read_dataset(name: str) -> Iterator[Row]:
    """A dataset folder or Hub id, loaded by the `datasets` library; code in datasets is never run."""
    import datasets

    target, split = name, "train"
    if not _local(name).is_dir() and ":" in name:
        target, _, split = name.rpartition(":")
    folder = _local(target)
    try:
        if (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(folder)
        elif (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(folder)[split]
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else target, split=split)
    except Exception as error:  # datasets raises many kinds; each means that these data cannot be had
        text = str(error).strip() or type(error).__name__
        raise DataError(
            f"cannot load dataset: {text.splitlines()[0]}",
            where=name,
            fix="give a local file, or `org/name:split` of a dataset that this machine can reach",
        ) from error
    for number, value in enumerate(loaded, start=1):
        yield Row(dict(value), f"{name}:{number}")
