"""Rows of JSON and JSON Lines files, with exact line numbers. A key that is given twice is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.sources.compressed import open_bytes
from preftune.sources.rows import Row

RECORDS = "write a list of records, or one record per line as .jsonl; pandas: to_json(FILE, orient='records')"
MAX_LINE_BYTES = 64_000_000


class KeyTwiceError(ValueError):
    """A JSON object has two values under one key."""


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these pairs. Raises KeyTwiceError if two have the same key."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyTwiceError(next(name for name in names if names.count(name) > 1))
    return value


STRICT = json.JSONDecoder(object_pairs_hook=refuse_twice)
NEXT_LINE = re.compile(r"\s*\{[^\n]*\n\s*\S")
LENIENT = json.JSONDecoder(parse_int=str)  # finds the end of a value that STRICT refuses


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError or RecursionError; `fault_of` puts these into words."""
    return STRICT.decode(text)


def fault_of(error: Exception) -> str:
    """Why a JSON text could not be read."""
    if isinstance(error, KeyTwiceError):
        return f"key {error.args[0]!r} is there twice"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno}"
    what = "too deep" if isinstance(error, RecursionError) else "an integer of more digits than Python reads"
    return f"broken JSON: {what}"


def text_of_bytes(raw: bytes, where: str) -> str:
    """The text of a whole file. Raises DataError with the line if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"not UTF-8 at byte {error.start}", where=f"{where}:{line}", fix="save it as UTF-8") from None


def jsonl(path: Path, name: str) -> Iterator[Row]:
    """One record per line; a line that cannot be read is a Row with a fault."""
    with open_bytes(path) as file:
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
                value = loads(line.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                yield Row({}, origin, fault_of(error))
                continue
            yield as_row(value, origin)


def as_row(value: Any, origin: str) -> Row:
    if not isinstance(value, dict):
        return Row({}, origin, f"a row is an object with named fields, not {type(value).__name__}")
    return Row(value, origin)


def json_list(path: Path, name: str) -> Iterator[Row]:
    """A list of records, an object with one list of records in it, or JSON Lines under the name .json.

    Origins are line numbers all the same.
    """
    with open_bytes(path) as file:
        text = text_of_bytes(file.read(), name)
    if _is_lines(text):
        yield from jsonl(path, name)
        return
    start = _skip(text, 0)
    wrapped = text[start : start + 1] == "{"
    if wrapped:
        start = _list_inside(text, name)
    if text[start : start + 1] != "[":
        raise DataError("neither a list of records nor an object that holds one", where=name, fix=RECORDS)
    at, line, counted = _skip(text, start + 1), 1, 0
    number, before = 0, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        # a file written on one line has many records there, and an origin is that of one record
        origin = f"{name}:{line}" if line != before else f"{name}:{line} (record {number})"
        before = line
        value, at, fault = _decode(text, at, name, line)
        yield Row({}, origin, fault) if fault else as_row(value, origin)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            raise DataError("broken JSON: expected ',' or ']'", where=f"{name}:{line}")
    if not wrapped and text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise DataError("more text after the list of records", where=f"{name}:{line}", fix="put all into one list")


def _is_lines(text: str) -> bool:
    """Whether the first line is a complete JSON object and more lines follow."""
    line = text[_skip(text, 0) :].partition("\n")[0] if NEXT_LINE.match(text) else ""
    try:
        return isinstance(LENIENT.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def _decode(text: str, at: int, name: str, line: int) -> tuple[Any, int, str]:
    """The value that begins at a place, where it ends, and why it cannot be used, if so."""
    try:
        try:
            return *STRICT.raw_decode(text, at), ""
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # the value ends where it would without this fault
            return *LENIENT.raw_decode(text, at), fault_of(error)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"{name}:{getattr(error, 'lineno', line)}"
        raise DataError(f"broken JSON: {getattr(error, 'msg', 'too deep')}", where=where) from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _list_inside(text: str, name: str) -> int:
    """Where the one list of a {"data": [...]} file begins."""
    lists: list[tuple[str, int]] = []
    keys = set[str]()
    at = _skip(text, _skip(text, 0) + 1)
    while text[at : at + 1] != "}":
        line = text.count("\n", 0, at) + 1
        key, at, _ = _decode(text, at, name, 1)
        if key in keys:
            raise DataError(f"key {key!r} is there twice", where=f"{name}:{line}", fix="remove or rename one of them")
        keys.add(key)
        begin = _skip(text, _skip(text, at) + 1)  # past the colon
        value, at, _ = _decode(text, begin, name, 1)
        if isinstance(value, list):
            lists.append((key, begin))
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at : at + 1] == "," else at
    if text[at + 1 :].strip():
        line = text.count("\n", 0, at + 1) + 1
        fix = "write a list of records, or one record per line"
        raise DataError("more text after the first record", where=f"{name}:{line}", fix=fix)
    if len(lists) != 1:
        names = ", ".join(repr(key) for key, _ in lists)
        what = f"an object with {len(lists)} lists: {names}" if lists else "an object without a list of records"
        raise DataError(f"{what}; one list of records was expected", where=name, fix=RECORDS)
    return lists[0][1]
