"""Decode messages and lists that are stored as text: cells of CSV files, and JSON strings in files of other kinds.

A cell stays text unless its column can only be read as something else:

* a column that no format takes as text (`LISTS`), where the cell is a JSON list;
* any column in which each of the first rows that have text there holds a message or a list of messages.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from json import JSONDecodeError
from typing import Any

from preftune.formats.parsers import Reading
from preftune.formats.table import BY_NAME
from preftune.formats.values import CONTENT_KEYS, ROLE_KEYS, ROLES, Fields, has_role, is_messages
from preftune.sources.json_rows import DuplicateKeyError, describe_json_error, loads, object_with_unique_keys
from preftune.sources.rows import Row

LOOKED_AT = 20
#: Columns that no format takes as text. Those of SURE must be lists; others may be somebody's metadata.
SURE = {"messages", "conversations", "responses", "judgements", "preferred_output", "non_preferred_output"}
SCORES = {"scores", "rewards", "ranks"}
LISTS = SURE | SCORES | {"labels", "ended", "history", "tools", "images", "videos", "audios"}
ANSWERS = {"completions", "answers", "outputs"}  # lists in data with ranked answers only
#: Formats that want lists, or messages, in columns where others take text; and those whose columns are all text.
LISTS_OF = {"lists": {"chosen", "rejected"}, "ranked": ANSWERS}
MESSAGES_OF = {
    "chat": {"prompt", "chosen", "rejected"},
    **{name: {"chosen", "rejected"} for name in ("ultrafeedback", "chat-implicit", "sharegpt")},
}
TEXTS = ("hh", "preference", "preference-implicit", "sft-text")
BEGIN = re.compile(r"\s*[\[{]")
#: How a list of messages begins, in JSON or as Python writes it. What begins so and cannot be parsed is not plain text.
MESSAGES = re.compile(r"""\s*\[\s*\{\s*(["'])(role|from|speaker|content|value)\1\s*:""")


@dataclass(frozen=True, slots=True)
class Decoding:
    """Columns, by their names in the file: whose lists are decoded, which of them must be lists, whose messages are."""

    lists: frozenset[str] = frozenset()
    sure: frozenset[str] = frozenset()
    messages: frozenset[str] = frozenset()


def decoded(rows: Iterable[Row], reading: Reading, note: Callable[[str, str], None] | None = None) -> Iterator[Row]:
    """The rows, with messages and lists in place of the text they were stored as.

    A cell that must be decoded and cannot be is a fault of its row. `note(text, origin)` is called for messages that
    stay text, because other rows of the column have plain text or because `reading.format` is one of plain text.
    """
    rows = iter(rows)
    if reading.format not in ("auto", *BY_NAME):  # the user's own function gets the cells as they are
        yield from rows
        return
    head = list(islice(rows, LOOKED_AT))
    how = plan([row.value for row in head if not row.fault], reading)
    for row in chain(head, rows):
        if row.fault:
            yield row
            continue
        value, fault = decode(row.value, how)
        if fault:
            yield Row({}, row.origin, fault)
            continue
        yield Row(value, row.origin)
        if note:
            for column in _messages_left(value, reading.ignore):
                note(f"column {column!r} holds messages as JSON text, which stays plain text", row.origin)


def plan(rows: Sequence[Fields], reading: Reading) -> Decoding:
    """Which columns of these rows are decoded."""
    theirs: Mapping[str, str] = {name: ours for ours, name in reading.columns.items()}
    names = {name: theirs.get(name, name) for row in rows for name in row if name not in reading.ignore}
    wanted = LISTS | LISTS_OF.get(reading.format, set())
    if SCORES & set(names.values()):
        wanted = wanted | ANSWERS
    if "preferred_output" in names.values():  # the dialogue of that format; elsewhere `input` is text
        wanted = wanted | {"input"}
    lists = frozenset(
        name for name, ours in names.items() if ours in wanted or (ours in ANSWERS and _all_objects(rows, name))
    )
    sought = MESSAGES_OF.get(reading.format, set())
    messages = frozenset(
        name
        for name, ours in names.items()
        if name not in lists and reading.format not in TEXTS and (ours in sought or _all_messages(rows, name))
    )
    return Decoding(lists, frozenset(name for name in lists if names[name] in SURE), messages)


def decode(row: Fields, how: Decoding) -> tuple[Fields, str]:
    """The row with its cells decoded, and why one of them cannot be, if so."""
    changed: Fields = {}
    for column in how.lists | how.messages:
        cell = row.get(column)
        if not isinstance(cell, str) or not BEGIN.match(cell):
            continue
        value, fault = _parse(cell)
        if column in how.messages:
            if value == [] or _are_messages(value):
                changed[column] = value
            elif fault and MESSAGES.match(cell):
                return row, f"column {column!r}: {fault}"
        elif isinstance(value, list | dict):
            changed[column] = value
        elif column in how.sure:
            return row, f"column {column!r}: {fault}"
    return (row | changed if changed else row), ""


def messages_in(cell: str) -> Any:
    """The message or list of messages that a text holds, or None."""
    if not BEGIN.match(cell) or not ("role" in cell or "from" in cell):
        return None
    value, _ = _parse(cell)
    return value if _are_messages(value) else None


def _messages_left(row: Fields, ignore: Sequence[str]) -> list[str]:
    """The columns whose text holds messages."""
    cells = {column: cell for column, cell in row.items() if isinstance(cell, str) and column not in ignore}
    return [column for column, cell in cells.items() if messages_in(cell) is not None]


def _all_objects(rows: Sequence[Fields], column: str) -> bool:
    """Whether the text of a column is a list of objects (answers with their scores) in each of these rows."""
    cells = [row[column] for row in rows if row.get(column) not in (None, "")]
    return bool(cells) and all(isinstance(cell, str) and is_messages(_parse(cell)[0]) for cell in cells)


def _all_messages(rows: Sequence[Fields], column: str) -> bool:
    """Whether a column holds messages in each of these rows that has something there, stored as text or not."""
    cells = [row[column] for row in rows if row.get(column) not in (None, "", [], "[]")]
    return bool(cells) and all(
        bool(MESSAGES.match(cell)) or messages_in(cell) is not None if isinstance(cell, str) else _are_messages(cell)
        for cell in cells
    )


def _are_messages(value: Any) -> bool:
    """Whether a value is a message of a known role, or a list of messages."""
    if isinstance(value, dict):
        role = next((value[key] for key in ROLE_KEYS if value.get(key) is not None), None)
        return _is_message(value) and str(role).strip().lower() in ROLES
    return is_messages(value) and all(_is_message(one) for one in value)


def _is_message(value: dict[str, Any]) -> bool:
    return has_role(value) and any(key in value for key in (*CONTENT_KEYS, "tool_calls"))


def _parse(cell: str) -> tuple[Any, str]:
    """The value of a JSON text, or of a list or dict as Python writes it; or None and why there is none."""
    text = cell.strip()
    try:
        return loads(text), ""
    except (ValueError, RecursionError) as error:
        fault = describe_json_error(error)
        if not isinstance(error, JSONDecodeError):
            return None, fault
    try:
        with warnings.catch_warnings(action="ignore"):  # Python warns of backslashes in text
            tree = ast.parse(text, mode="eval")
            for keys in [node.keys for node in ast.walk(tree) if isinstance(node, ast.Dict)]:
                object_with_unique_keys([(str(key.value), None) for key in keys if isinstance(key, ast.Constant)])
            return ast.literal_eval(tree), ""
    except DuplicateKeyError as error:
        return None, describe_json_error(error)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        hint = "; write such cells with json.dumps" if MESSAGES.match(cell) else ""
        return None, f"{fault}{hint}"
