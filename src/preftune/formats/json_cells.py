"""Decode messages and lists that are stored as text: cells of CSV files, and JSON strings in other files.

A cell stays text except in two cases:

* No format reads the column as text (`POSSIBLE_LISTS`), and the cell is a JSON list.
* In the first INSPECTED_ROWS rows, every non-empty cell of the column is a message or a list of messages.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from json import JSONDecodeError
from typing import Any

from preftune.formats.column_roles import COMPLETIONS
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import CONTENT_KEYS, ROLE_KEYS, ROLES, Fields, has_role, is_messages
from preftune.sources.json_rows import DuplicateKeyError, describe_json_error, loads, object_with_unique_keys
from preftune.sources.rows import Note, Row

INSPECTED_ROWS = 20
#: Columns that no format reads as text. Those of ALWAYS_LISTS must be lists; the others may be metadata.
ALWAYS_LISTS = {"messages", "conversations", "responses", "judgements", "preferred_output", "non_preferred_output"}
SCORES = {"scores", "rewards", "ranks"}
POSSIBLE_LISTS = (
    ALWAYS_LISTS
    | SCORES
    | {"labels", "ended", "history", "tools", "chat_template_kwargs", "images", "videos", "audios"}
)
ANSWERS = {"completions", "answers", "outputs"}  # lists only in data with ranked responses
#: Columns that must be lists, or messages, in the named format and are text in others; formats with text columns only.
LISTS_IN_FORMAT = {"lists": {"chosen", "rejected"}, "ranked": ANSWERS, "ordered": {*ANSWERS, *COMPLETIONS}}
MESSAGES_IN_FORMAT = {
    "chat": {"prompt", "chosen", "rejected"},
    **{name: {"chosen", "rejected"} for name in ("ultrafeedback", "chat-implicit", "sharegpt")},
}
TEXT_FORMATS = ("hh", "preference", "preference-implicit", "sft-text")
JSON_START = re.compile(r"\s*[\[{]")
#: How a list of messages begins, in JSON or Python syntax. Text that begins like this and cannot be parsed is an error.
MESSAGES_START = re.compile(r"""\s*\[\s*\{\s*(["'])(role|from|speaker|content|value)\1\s*:""")


@dataclass(frozen=True, slots=True)
class Decoding:
    """Columns whose cells are decoded if they are lists or messages. Cells of `always_lists` must be lists."""

    lists: frozenset[str] = frozenset()
    always_lists: frozenset[str] = frozenset()
    messages: frozenset[str] = frozenset()


def decode_cells(rows: Iterable[Row], reading: Reading, note: Note | None = None) -> Iterator[Row]:
    """Yield the rows with messages and lists decoded from text.

    A row whose cell must be decoded and cannot be gets a fault. `note(text, origin)` is called for messages that stay
    text, because other rows of the column have plain text or `reading.format` is a text format.
    """
    rows = iter(rows)
    if reading.format not in ("auto", *BY_NAME):  # a user's function gets the cells unchanged
        yield from rows
        return
    head = list(islice(rows, INSPECTED_ROWS))
    decoding = plan_decoding([row.value for row in head if not row.fault], reading)
    for row in chain(head, rows):
        if row.fault:
            yield row
            continue
        value, fault = decode_row(row.value, decoding)
        if fault:
            yield Row({}, row.origin, fault)
            continue
        yield Row(value, row.origin)
        if note:
            for column, cell in value.items():
                if isinstance(cell, str) and column not in reading.ignore and messages_in(cell) is not None:
                    note(f"column {column!r} contains messages as JSON text, which stays plain text", row.origin)


def plan_decoding(rows: Sequence[Fields], reading: Reading) -> Decoding:
    """Choose the columns to decode from the first rows."""
    renamed: Mapping[str, str] = {column: name for name, column in reading.columns.items()}
    names = {column: renamed.get(column, column) for row in rows for column in row if column not in reading.ignore}
    list_names = POSSIBLE_LISTS | LISTS_IN_FORMAT.get(reading.format, set())
    if SCORES & set(names.values()):
        list_names = list_names | ANSWERS
    if "preferred_output" in names.values():  # the format `openai`, where `input` is not text
        list_names = list_names | {"input"}
    lists = frozenset(
        column
        for column, name in names.items()
        if name in list_names or (name in ANSWERS and _all_objects(rows, column))
    )
    message_names = MESSAGES_IN_FORMAT.get(reading.format, set())
    messages = frozenset(
        column
        for column, name in names.items()
        if column not in lists
        and reading.format not in TEXT_FORMATS
        and (name in message_names or _all_messages(rows, column))
    )
    return Decoding(lists, frozenset(column for column in lists if names[column] in ALWAYS_LISTS), messages)


def decode_row(row: Fields, decoding: Decoding) -> tuple[Fields, str]:
    """Return the row with its cells decoded, and why a cell cannot be decoded or ""."""
    changed: Fields = {}
    for column in decoding.lists | decoding.messages:
        cell = row.get(column)
        if not isinstance(cell, str) or not JSON_START.match(cell):
            continue
        value, fault = _parse(cell)
        if column in decoding.messages:
            if value == [] or _are_messages(value):
                changed[column] = value
            elif fault and MESSAGES_START.match(cell):
                return row, f"column {column!r}: {fault}"
        elif isinstance(value, list | dict):
            changed[column] = value
        elif column in decoding.always_lists:
            return row, f"column {column!r}: {fault}"
    return (row | changed if changed else row), ""


def messages_in(cell: str) -> Any:
    """Return the message or list of messages in a text, or None."""
    if not JSON_START.match(cell) or not ("role" in cell or "from" in cell):
        return None
    value, _ = _parse(cell)
    return value if _are_messages(value) else None


def _all_objects(rows: Sequence[Fields], column: str) -> bool:
    """Return whether the text of a column is a list of objects (responses with scores) in all of these rows."""
    cells = [row[column] for row in rows if row.get(column) not in (None, "")]
    return bool(cells) and all(isinstance(cell, str) and is_messages(_parse(cell)[0]) for cell in cells)


def _all_messages(rows: Sequence[Fields], column: str) -> bool:
    """Return whether every non-empty cell of a column contains messages, stored as text or not."""
    cells = [row[column] for row in rows if row.get(column) not in (None, "", [], "[]")]

    def has_messages(cell: Any) -> bool:
        if not isinstance(cell, str):
            return _are_messages(cell)
        return bool(MESSAGES_START.match(cell)) or messages_in(cell) is not None

    return bool(cells) and all(map(has_messages, cells))


def _are_messages(value: Any) -> bool:
    """Return whether a value is a message with a known role, or a list of messages."""
    if isinstance(value, dict):
        role = next((value[key] for key in ROLE_KEYS if value.get(key) is not None), None)
        return _is_message(value) and str(role).strip().lower() in ROLES
    return is_messages(value) and all(_is_message(message) for message in value)


def _is_message(value: dict[str, Any]) -> bool:
    return has_role(value) and any(key in value for key in (*CONTENT_KEYS, "tool_calls"))


def _parse(cell: str) -> tuple[Any, str]:
    """Parse JSON, or a list or dict in Python syntax. Returns (value, "") or (None, why it cannot be parsed)."""
    text = cell.strip()
    try:
        return loads(text), ""
    except (ValueError, RecursionError) as error:
        fault = describe_json_error(error)
        if not isinstance(error, JSONDecodeError):
            return None, fault
    try:
        with warnings.catch_warnings(action="ignore"):  # Python warns about backslashes in text
            tree = ast.parse(text, mode="eval")
            for keys in [node.keys for node in ast.walk(tree) if isinstance(node, ast.Dict)]:
                object_with_unique_keys([(str(key.value), None) for key in keys if isinstance(key, ast.Constant)])
            return ast.literal_eval(tree), ""
    except DuplicateKeyError as error:
        return None, describe_json_error(error)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # TypeError: {{1}}
        hint = "; write such cells with json.dumps" if MESSAGES_START.match(cell) else ""
        return None, f"{fault}{hint}"
