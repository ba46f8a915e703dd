"""Read rows of JSON and JSON Lines files, with exact line numbers. A duplicate key is an error."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

from preftune.errors import DataError
from preftune.sources.compressed import AnyFile, open_text
from preftune.sources.json_tables import records_of
from preftune.sources.rows import Row

WRITE_RECORDS = "write a list of records, or one record per line as .jsonl; pandas: to_json(FILE, orient='records')"
SAVE_AS_UTF8 = (
    "save it as UTF-8; in Excel, choose 'CSV UTF-8' in Save As. A file with Windows' Western European encoding: "
    "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
)
MAX_LINE_BYTES = 64_000_000
PART_BYTES = 1 << 20


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


def decoded(file: IO[bytes], where: str) -> Iterator[str]:
    """Yield the text of a file in parts. If it is not UTF-8, raises DataError with the line."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset, line, ended = 0, 1, False
    while not ended:
        raw = file.read(PART_BYTES)
        ended = not raw
        try:
            text = decoder.decode(raw, final=ended)
        except UnicodeDecodeError as error:
            at = offset + len(raw) - len(error.object) + error.start
            line += error.object[: error.start].count(b"\n")
            raise DataError(f"not UTF-8 at byte {at}", where=f"{where}:{line}", fix=SAVE_AS_UTF8) from None
        offset, line = offset + len(raw), line + raw.count(b"\n")
        yield text


def lines(path: AnyFile, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the origin and the bytes of each line that is not blank. Raises DataError for a line of over 64 MB."""
    with open_text(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            origin = f"{name}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                what = f"the line is longer than {MAX_LINE_BYTES // 1_000_000} MB"
                raise DataError(what, where=origin, fix="write one record per line")
            if raw.strip():
                yield origin, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw


def jsonl(path: AnyFile, name: str) -> Iterator[Row]:
    """Yield one record per line. A line that cannot be read becomes a Row with a fault."""
    for origin, raw in lines(path, name):
        try:
            row = as_row(loads(raw.decode().rstrip("\r\n")), origin)
        except (ValueError, RecursionError) as error:
            row = Row({}, origin, describe_json_error(error))
        yield row


def as_row(value: Any, origin: str) -> Row:
    """Wrap a JSON value in a Row, which has a fault if the value is not an object."""
    if not isinstance(value, dict):
        return Row({}, origin, f"a row must be an object with named fields, not {type(value).__name__}")
    return Row(value, origin)


class _Unread:
    """The text of a JSON file from the current value on. More of the file is read when a value needs it."""

    def __init__(self, parts: Iterator[str], name: str) -> None:
        self.name = name
        self.text, self.at = "", 0
        self._parts = parts
        self._first_line = self._line = 1  # of the text, and of position _counted in it
        self._counted = 0

    def more(self) -> bool:
        """Forget what is already used, and read at least as much as is left. Return False at the end of the file."""
        self._first_line = self.line()
        self.text, self.at, self._counted = self.text[self.at :], 0, 0
        parts = (part for part in self._parts if part)  # a part of one incomplete character is empty
        added = "".join(islice(parts, 1 + len(self.text) // PART_BYTES))
        self.text += added
        return bool(added)

    def line(self) -> int:
        """Return the line of the current position."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def next(self) -> str:
        """Skip space and return the next character, or "" at the end of the file."""
        while True:
            self.at = _skip_space(self.text, self.at)
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self) -> str:
        """Skip the next character, and return the one after it."""
        self.at += 1
        return self.next()

    def value(self) -> tuple[Any, str]:
        """Read one value: (value, why it cannot be used or "")."""
        while True:
            try:
                value, end, fault = _decode(self.text, self.at, self.name, self._first_line)
            except DataError:
                if self.more():  # the value may only be cut off
                    continue
                raise
            if end < len(self.text) or not self.more():
                self.at = end
                return value, fault


def json_list(path: AnyFile, name: str) -> Iterator[Row]:
    """Yield the records of a .json file, with line numbers: a list, an object with one list in it, or JSON Lines.

    A list and JSON Lines are read in parts. An object is read whole, because all of its lists have to be counted. Its
    records may also be in one of the forms of `json_tables.records_of`.
    """
    with open_text(path) as file:
        unread = _Unread(decoded(file, name), name)
        wrapped = unread.next() == "{"
        while wrapped and not NEXT_LINE.match(unread.text) and unread.more():
            pass
        if wrapped and _is_lines(unread.text):
            yield from jsonl(path, name)
            return
        if wrapped:
            while unread.more():
                pass
            value, lists = _object(unread.text, name)
            records = records_of(value, [key for key, _ in lists])
            if isinstance(records, str):
                unread.at = dict(lists)[records]
            elif records is not None:
                yield from (Row(record, f"{name} (record {i})") for i, record in enumerate(records, start=1))
                return
            else:
                names = ", ".join(repr(key) for key, _ in lists)
                what = f"the object has {len(lists)} lists: {names}" if lists else "the object has no list"
                raise DataError(f"{what}; exactly one list of records is expected", where=name, fix=WRITE_RECORDS)
        yield from _records(unread, wrapped)


def _records(unread: _Unread, wrapped: bool) -> Iterator[Row]:
    name = unread.name
    if unread.next() != "[":
        raise DataError("neither a list of records nor an object that contains one", where=name, fix=WRITE_RECORDS)
    number, previous_line = 0, 0
    following = unread.skip()
    while following != "]":
        line = unread.line()
        number += 1
        # the record number tells records on the same line apart
        origin = f"{name}:{line}" if line != previous_line else f"{name}:{line} (record {number})"
        previous_line = line
        value, fault = unread.value()
        yield Row({}, origin, fault) if fault else as_row(value, origin)
        following = unread.next()
        if following == ",":
            following = unread.skip()
        elif following != "]":
            fix = "repair the JSON at this line"
            raise DataError("broken JSON: expected ',' or ']'", where=f"{name}:{unread.line()}", fix=fix)
    if unread.skip() and not wrapped:
        fix = "put all records into one list"
        raise DataError("more text follows the list of records", where=f"{name}:{unread.line()}", fix=fix)


def _is_lines(text: str) -> bool:
    """Return whether the first line is a complete JSON object and more lines follow."""
    line = text[_skip_space(text, 0) :].partition("\n")[0] if NEXT_LINE.match(text) else ""
    try:
        return isinstance(LENIENT_DECODER.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def _decode(text: str, at: int, name: str, first_line: int = 1) -> tuple[Any, int, str]:
    """Decode the value at position `at`: (value, position of its end, why it cannot be used or "").

    first_line: the line of the file on which `text` begins
    """
    try:
        try:
            return *STRICT_DECODER.raw_decode(text, at), ""
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # well-formed JSON with a duplicate key or a huge integer
            return *LENIENT_DECODER.raw_decode(text, at), describe_json_error(error)
    except (json.JSONDecodeError, RecursionError) as error:
        breaks = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else text.count("\n", 0, at)
        where = f"{name}:{first_line + breaks}"
        what = f"broken JSON: {getattr(error, 'msg', 'nested too deeply')}"
        raise DataError(what, where=where, fix="repair the JSON at this line") from None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _object(text: str, name: str) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Return the object of a {"data": [...]} file, and the position of each list in it."""
    lists: list[tuple[str, int]] = []
    content: dict[str, Any] = {}
    at = _skip_space(text, _skip_space(text, 0) + 1)
    while text[at : at + 1] != "}":
        line = text.count("\n", 0, at) + 1
        key, at, _ = _decode(text, at, name)
        if key in content:
            raise DataError(f"key {key!r} appears twice", where=f"{name}:{line}", fix="remove or rename one of them")
        begin = _skip_space(text, _skip_space(text, at) + 1)  # past the colon
        content[key], at, _ = _decode(text, begin, name)
        if isinstance(content[key], list):
            lists.append((key, begin))
        at = _skip_space(text, at)
        at = _skip_space(text, at + 1) if text[at : at + 1] == "," else at
    if text[at + 1 :].strip():
        line = text.count("\n", 0, at + 1) + 1
        fix = "write a list of records, or one record per line"
        raise DataError("more text follows the first record", where=f"{name}:{line}", fix=fix)
    return content, lists
