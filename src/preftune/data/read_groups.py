"""Read preference data from files as groups of text. Every row and column is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import overload

from preftune.chat.turns import CONVERTED, text_to_chat, transcript_to_chat
from preftune.data.spool import Spool, rewritten
from preftune.errors import DataError
from preftune.formats import file_checks, join, layouts, ratings
from preftune.formats.account import Account
from preftune.formats.columns import ColumnLedger, TrackedRow
from preftune.formats.json_cells import decode_cells
from preftune.formats.names import ColumnNames, column_names, columns_setting, missing_column_error
from preftune.formats.origins import Origins
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME, FunctionFault, detect, format_of_row, parse_with_function
from preftune.formats.tools import for_template
from preftune.formats.values import BadRow, Drop, Fields, drop_empty_responses, has_margin
from preftune.formats.where import filter_of
from preftune.resolve import require_one_argument, resolve
from preftune.sources.known import columns_of
from preftune.sources.read import read
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup

SEVERAL_MESSAGES = "the transcripts differ before their last turn, so the responses have several messages"
DETECTION_ROWS = 20  # rows from which the format is detected


Parser = Callable[[Fields], Iterable[PreferenceGroup]]


@overload
def read_groups(
    source: str | Sequence[str], reading: Reading | None = None, spool: None = None
) -> tuple[list[PreferenceGroup], Account]: ...
@overload
def read_groups(
    source: str | Sequence[str], reading: Reading | None, spool: Spool
) -> tuple[Sequence[PreferenceGroup], Account]: ...
def read_groups(
    source: str | Sequence[str], reading: Reading | None = None, spool: Spool | None = None
) -> tuple[Sequence[PreferenceGroup], Account]:
    """Read all groups of `source`. Return them with the account of its rows and columns.

    The groups are a list, or those of `spool`, which moves them to a file if there are many. Raises DataError for an
    unknown format, for unknown columns that are not used (see data.columns), and, unless `reading.bad_rows` is "drop",
    for the first row that does not fit the format.
    """
    reading, spool = reading or Reading(), spool or Spool()
    name = source if isinstance(source, str) else ", ".join(source)
    account = Account(name)
    reading = with_known_columns(source, reading, account)
    selected = filter_of(reading, account)
    rows: Iterator[Row] = selected.rows(decode_cells(read(source, account.note), reading, account.note))
    rows = rows if reading.limit is None else islice(rows, reading.limit)
    origin_of: dict[str, str] = {}
    rows = layouts.rewritten(rows, reading, origin_of, DETECTION_ROWS)
    names = column_names(reading.columns, reading.ignore)
    head = list(islice(rows, DETECTION_ROWS))
    if reading.format == "auto":
        _require_mapped(head, names)
    joined = join.joined(chain(head, rows), names, reading, account, DETECTION_ROWS)
    head = list(islice(joined.rows, DETECTION_ROWS))
    parse, rows = parser_of(names.readable(head), head, chain(head, joined.rows), names, reading, account)
    ledger = ColumnLedger(name, account.format, names, joined.origin_of or origin_of)
    margins, checks = file_checks.Margins(), file_checks.FileChecks()
    for group in _parsed(rows, parse, ledger, account, reading, margins):
        spool.add(group)
        checks.add(group)
    groups = spool.groups()
    selected.require_columns()
    if reading.aspect and not (joined.by_aspect or ratings.reads_aspect(account.format, ledger.seen)):
        raise ratings.no_aspect(reading.aspect, name)
    for column, status in joined.statuses.items():
        ledger.count(column, status)
    _finish_account(ledger, account, reading)
    dropped: set[str] = set()
    if account.format in BY_NAME and account.format not in file_checks.WITHOUT_MARGIN_COLUMN:
        dropped = file_checks.rows_without_margin(margins, reading, account)
    to_chats = ledger.has_context or (checks.is_mixed and account.format in BY_NAME)
    if dropped or to_chats:
        kept: Iterable[PreferenceGroup] = (group for group in groups if group.origin not in dropped)
        kept = file_checks.text_prompts_to_chats(kept, account) if to_chats else kept
        groups, checks = rewritten(kept, groups), file_checks.FileChecks()
        for group in groups:
            checks.add(group)
    checks.finish(reading, account)
    return groups, account


def with_known_columns(source: str | Sequence[str], reading: Reading, account: Account) -> Reading:
    """Return the options with the column names of a well-known data set, unless the user names columns or a format."""
    columns = columns_of(source)
    if not columns or reading.columns or reading.format != "auto":
        return reading
    account.note(f"the columns of this data set are read with {columns_setting(columns)}", account.source)
    return replace(reading, columns=columns)


def _parsed(
    rows: Iterable[Row],
    parse: Parser,
    ledger: ColumnLedger,
    account: Account,
    reading: Reading,
    margins: file_checks.Margins,
) -> Iterator[PreferenceGroup]:
    """Yield the groups of all rows, and record which rows with judgements have a margin."""
    strict = reading.bad_rows == "error"
    failed: dict[str, Origins] = {}  # error message -> origins of the rows
    for row in rows:
        account.read += 1 + len(row.others)
        try:
            groups = read_row(row, parse, ledger, account, not strict)
            yield from as_chats(groups, reading, account)
            if any(group.judgements for group in groups):
                margins.add(row.origin, has_margin(ledger.names.rename(row.value)))
        except Drop as reason:
            _drop(account, str(reason), row)
        except BadRow as fault:
            if strict and not isinstance(fault, FunctionFault):
                ledger.refuse(account.read)  # an unused column may explain the fault
                raise file_checks.bad_row_error(fault, row.origin, account.format, reading) from None
            _drop(account, f"cannot be read: {fault}", row)
            failed.setdefault(str(fault), Origins()).append(row.origin)
        if account.read >= DETECTION_ROWS and strict:
            ledger.refuse(account.read)
    if failed and strict:  # reported together: one mistake in a function usually affects many rows
        raise file_checks.function_error(failed, account)


def as_chats(groups: Sequence[PreferenceGroup], reading: Reading, account: Account) -> Sequence[PreferenceGroup]:
    """Return the groups of a row with the text prompts as messages that `reading.as_chat` says."""
    if not reading.as_chat:
        return groups
    if account.format == "hh" and any(len(text) > 1 for text in groups[0].responses if not isinstance(text, str)):
        account.note(SEVERAL_MESSAGES, groups[0].origin)
    if reading.as_chat != "transcripts":
        return list(map(text_to_chat, groups))
    chats = list(map(transcript_to_chat, groups))
    if account.format == "hh" or any(chat is not group for chat, group in zip(chats, groups, strict=True)):
        account.note(CONVERTED, groups[0].origin)
    return chats


def _drop(account: Account, reason: str, row: Row) -> None:
    for origin in (row.origin, *row.others):
        account.drop(reason, origin)


def _finish_account(ledger: ColumnLedger, account: Account, reading: Reading) -> None:
    """Record the columns in the account. Raises DataError for refused and for missing columns."""
    if reading.bad_rows == "error" or ledger.refuses_most_of(account.read):
        ledger.refuse(account.read, nothing_kept=account.kept == 0)
    if account.read:
        ledger.require_mapped()
    account.columns, account.unmatched = ledger.statuses(), ledger.unmatched() if account.read else []
    account.unread = ledger.unread()
    for note, origins in ledger.notes.items():
        for origin in origins:
            account.note(note, origin)


def _require_mapped(head: Sequence[Row], names: ColumnNames) -> None:
    """Raise DataError if no row has a column that data.columns names."""
    readable = names.readable(head)
    for column, name in names.new_name.items():
        if readable and not any(name in row for row in readable):
            columns = dict.fromkeys(key for row in readable for key in row)
            raise missing_column_error(column, name, columns, _file_of(head[0]))


def _file_of(row: Row) -> str:
    return row.origin.rpartition(":")[0] or row.origin


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
    ledger.see(row.value)
    value = TrackedRow(ledger.names.rename(row.value))
    try:
        parsed = parse(value)
        parsed = for_template(parsed, value) if ledger.format in BY_NAME else parsed
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
    mixed = reading.format == "auto"
    if reading.format == "auto":
        if not readable:  # report why, instead of guessing a format
            raise _first_fault(head[0], names)
        row_format = detect(readable, _file_of(head[0]))
    else:
        row_format = BY_NAME[reading.format]
    account.format = row_format.name
    if row_format.adjust:
        all_rows = list(rows)
        reading = row_format.adjust(names.readable(all_rows), reading, account.source)
        rows = iter(all_rows)
    if mixed:
        return lambda row: format_of_row(row, row_format).parse(row, reading), rows
    return lambda row: row_format.parse(row, reading), rows
