"""Read rows of JSON and JSON Lines files, with exact line numbers. A duplicate key is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.sources.compressed import open_bytes
from preftune.sources.rows import Row

WRITE_RECORDS = "write a list of records, or one record per line as .jsonl; pandas: to_json(FILE, orient='records')"
MAX_LINE_BYTES = 64_000_000


class DuplicateKeyError(ValueError):
    """A JSON object has two values for one key."""


def object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of these pairs. Raises DuplicateKeyError if a key occurs twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return value


STRICT_DECODER = json.JSONDecoder(object_pairs_hook=object_with_unique_keys)
NEXT_LINE = re.compile(r"\s*\{[^\n]*\n\s*\S")
LENIENT_DECODER = json.JSONDecoder(parse_int=str)  # finds the end of a value that STRICT_DECODER rejects


def loads(text: str) -> Any:
    """Parse a JSON text. Raises ValueError or RecursionError; `describe_json_error` turns them into a message."""
    return STRICT_DECODER.decode(text)


def describe_json_error(error: Exception) -> str:
    """Say why a JSON text could not be read."""
    if isinstance(error, DuplicateKeyError):
        return f"key {error.args[0]!r} appears twice"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start} of the line"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno}"
    too_deep = isinstance(error, RecursionError)
    return f"broken JSON: {'nested too deeply' if too_deep else 'an integer has more digits than Python reads'}"


def decode_utf8(raw: bytes, where: str) -> str:
    """Decode the bytes of a whole file. If they are not UTF-8, raises DataError with the line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"not UTF-8 at byte {error.start}", where=f"{where}:{line}", fix="save it as UTF-8") from None


def jsonl(path: Path, name: str) -> Iterator[Row]:
    """Yield one record per line. A line that cannot be read becomes a Row with a fault."""
    with open_bytes(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            origin = f"{name}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                what = f"the line is longer than {MAX_LINE_BYTES // 1_000_000} MB"
                raise DataError(what, where=origin, fix="write one record per line")
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                row = as_row(loads(line.rstrip("\r\n")), origin)
            except (ValueError, RecursionError) as error:
                row = Row({}, origin, describe_json_error(error))
            yield row


def as_row(value: Any, origin: str) -> Row:
    """Wrap a JSON value in a Row, which has a fault if the value is not an object."""
    if not isinstance(value, dict):
        return Row({}, origin, f"a row must be an object with named fields, not {type(value).__name__}")
    return Row(value, origin)


def json_list(path: Path, name: str) -> Iterator[Row]:
    """Yield the records of a .json file, with line numbers: a list, an object with one list in it, or JSON Lines."""
    with open_bytes(path) as file:
        text = decode_utf8(file.read(), name)
    if _is_lines(text):
        yield from jsonl(path, name)
        return
    start = _skip_space(text, 0)
    wrapped = text[start : start + 1] == "{"
    if wrapped:
        start = _start_of_list(text, name)
    if text[start : start + 1] != "[":
        raise DataError("neither a list of records nor an object that contains one", where=name, fix=WRITE_RECORDS)
    at, line, counted = _skip_space(text, start + 1), 1, 0
    number, previous_line = 0, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        # the record number tells records on the same line apart
        origin = f"{name}:{line}" if line != previous_line else f"{name}:{line} (record {number})"
        previous_line = line
        value, at, fault = _decode(text, at, name, line)
        yield Row({}, origin, fault) if fault else as_row(value, origin)
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            fix = "repair the JSON at this line"
            raise DataError("broken JSON: expected ',' or ']'", where=f"{name}:{line}", fix=fix)
    if not wrapped and text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        fix = "put all records into one list"
        raise DataError("more text follows the list of records", where=f"{name}:{line}", fix=fix)


def _is_lines(text: str) -> bool:
    """Return whether the first line is a complete JSON object and more lines follow."""
    line = text[_skip_space(text, 0) :].partition("\n")[0] if NEXT_LINE.match(text) else ""
    try:
        return isinstance(LENIENT_DECODER.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def _decode(text: str, at: int, name: str, line: int) -> tuple[Any, int, str]:
    """Decode the value at position `at`: (value, position of its end, why it cannot be used or "")."""
    try:
        try:
            return *STRICT_DECODER.raw_decode(text, at), ""
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # well-formed JSON with a duplicate key or a huge integer
            return *LENIENT_DECODER.raw_decode(text, at), describe_json_error(error)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"{name}:{getattr(error, 'lineno', line)}"
        what = f"broken JSON: {getattr(error, 'msg', 'nested too deeply')}"
        raise DataError(what, where=where, fix="repair the JSON at this line") from None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _start_of_list(text: str, name: str) -> int:
    """Return the position of the only list in a {"data": [...]} file."""
    lists: list[tuple[str, int]] = []
    keys = set[str]()
    at = _skip_space(text, _skip_space(text, 0) + 1)
    while text[at : at + 1] != "}":
        line = text.count("\n", 0, at) + 1
        key, at, _ = _decode(text, at, name, 1)
        if key in keys:
            raise DataError(f"key {key!r} appears twice", where=f"{name}:{line}", fix="remove or rename one of them")
        keys.add(key)
        begin = _skip_space(text, _skip_space(text, at) + 1)  # past the colon
        value, at, _ = _decode(text, begin, name, 1)
        if isinstance(value, list):
            lists.append((key, begin))
        at = _skip_space(text, at)
        at = _skip_space(text, at + 1) if text[at : at + 1] == "," else at
    if text[at + 1 :].strip():
        line = text.count("\n", 0, at + 1) + 1
        fix = "write a list of records, or one record per line"
        raise DataError("more text follows the first record", where=f"{name}:{line}", fix=fix)
    if len(lists) != 1:
        names = ", ".join(repr(key) for key, _ in lists)
        what = f"the object has {len(lists)} lists: {names}" if lists else "the object has no list"
        raise DataError(f"{what}; exactly one list of records is expected", where=name, fix=WRITE_RECORDS)
    return lists[0][1]
