"""Parse single rows of preference data. The parser is chosen from the first rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.columns import ColumnLedger, TrackedRow
from preftune.formats.names import ColumnNames, missing_column_error
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME, detect, parse_with_function
from preftune.formats.tools import tools_of, with_tools
from preftune.formats.values import BadRow, Drop, Fields, drop_empty_responses
from preftune.resolve import require_one_argument, resolve
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup

Parser = Callable[[Fields], Iterable[PreferenceGroup]]


def readable_rows(rows: Sequence[Row], names: ColumnNames) -> list[Fields]:
    """Return the rows that can be read, with preftune's column names."""
    readable = []
    for row in rows:
        with suppress(BadRow):  # reported when the row is parsed
            if not row.fault:
                readable.append(names.rename(row.value))
    return readable


def _first_fault(row: Row, names: ColumnNames) -> DataError:
    fault = BadRow(row.fault)
    try:
        if not row.fault:
            names.rename(row.value)
    except BadRow as error:
        fault = error
    return DataError(str(fault), where=row.origin, fix=fault.fix or "repair or remove the row")


def read_row(row: Row, parse: Parser, ledger: ColumnLedger, account: Account, drop: bool) -> list[PreferenceGroup]:
    """Parse one row and record its columns in the ledger."""
    if row.fault:
        raise BadRow(row.fault)
    ledger.seen.update(row.value)
    value = TrackedRow(ledger.names.rename(row.value))
    try:
        parsed = parse(value)
        parsed = with_tools(parsed, tools_of(value)) if ledger.format in BY_NAME else parsed
        groups = _without_empty(row.origin, parsed, account)
    except Drop:
        ledger.record(row.value, value, None, row.origin)
        raise
    refused = ledger.record(row.value, value, groups, row.origin)
    if refused and drop:
        raise BadRow(f"column {refused[0]!r} {ledger.refused[refused[0]][0]}")
    return groups


def _without_empty(origin: str, parsed: Iterable[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """Return the groups of one row without empty responses."""
    groups = [replace(group, origin=origin) for group in parsed if group.responses]
    if not groups:
        raise Drop("the row has no response")
    result = [drop_empty_responses(group) for group in groups]
    if result != groups:
        account.note("an empty response and its judgements were dropped", origin)
    return result


def parser_of(
    readable: list[Fields], head: list[Row], rows: Iterator[Row], names: ColumnNames, reading: Reading, account: Account
) -> tuple[Parser, Iterator[Row]]:
    """Return the parser and the rows. Some formats must look at all rows before the first one is parsed."""
    if reading.format != "auto" and reading.format not in BY_NAME:
        function = resolve(reading.format, dict.fromkeys(BY_NAME, parse_with_function), "data.format")
        require_one_argument(function, reading.format)
        account.format = reading.format
        return lambda row: parse_with_function(function, dict(row.items()), reading.format), rows
    if not head:
        account.format = account.format if reading.format == "auto" else reading.format
        return lambda row: (), rows
    if reading.format == "auto":
        if not readable:  # report why, instead of guessing a format
            raise _first_fault(head[0], names)
        where = head[0].origin.rpartition(":")[0] or head[0].origin
        for column, name in names.new_name.items():
            if readable and not any(name in row for row in readable):
                raise missing_column_error(column, name, dict.fromkeys(key for row in readable for key in row), where)
        row_format = detect(readable, where)
    else:
        row_format = BY_NAME[reading.format]
    account.format = row_format.name
    if row_format.adjust:
        all_rows = list(rows)
        reading = row_format.adjust(readable_rows(all_rows, names), reading, account.source)
        rows = iter(all_rows)
    return lambda row: row_format.parse(row, reading), rows
