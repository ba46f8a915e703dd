"""Read preference data from files as groups of text. Every row and column is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import overload

from preftune.chat.turns import text_to_chat
from preftune.data.row_reader import Parser, parser_of, read_row, readable_rows
from preftune.data.spool import Spool, rewritten
from preftune.formats import file_checks, ratings
from preftune.formats.account import Account
from preftune.formats.columns import ColumnLedger
from preftune.formats.json_cells import decode_cells
from preftune.formats.names import column_names
from preftune.formats.origins import Origins
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME, FunctionFault
from preftune.formats.values import BadRow, Drop, has_margin
from preftune.formats.where import Filter, conditions
from preftune.sources.read import read
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup

DETECTION_ROWS = 20  # rows from which the format is detected


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
    selected = Filter(conditions(reading.where), account)
    rows: Iterator[Row] = selected.rows(decode_cells(read(source, account.note), reading, account.note))
    rows = rows if reading.limit is None else islice(rows, reading.limit)
    head = list(islice(rows, DETECTION_ROWS))
    names = column_names(reading.columns, reading.ignore)
    rated = ratings.are_ratings(readable_rows(head, names), reading.aspect)
    if rated:
        rows = ratings.joined(chain(head, rows), reading.aspect, names, account)
        head = list(islice(rows, DETECTION_ROWS))
    parse, rows = parser_of(readable_rows(head, names), head, chain(head, rows), names, reading, account)
    ledger = ColumnLedger(name, account.format, names)
    margins, checks = file_checks.Margins(), file_checks.FileChecks()
    for group in _parsed(rows, parse, ledger, account, reading, margins):
        spool.add(group)
        checks.add(group)
    groups = spool.groups()
    selected.require_columns()
    if reading.aspect and not (rated or ratings.reads_aspect(account.format, ledger.seen)):
        raise ratings.no_aspect(reading.aspect, name)
    _finish_account(ledger, account, reading)
    dropped: set[str] = set()
    if account.format in BY_NAME and account.format != "ranked":  # others do not read margins from a column
        dropped = file_checks.rows_without_margin(margins, reading, account)
    if dropped or ledger.has_context:
        kept: Iterable[PreferenceGroup] = (group for group in groups if group.origin not in dropped)
        kept = file_checks.text_prompts_to_chats(kept, account) if ledger.has_context else kept
        groups, checks = rewritten(kept, groups), file_checks.FileChecks()
        for group in groups:
            checks.add(group)
    checks.finish(reading, account)
    return groups, account


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
        account.read += 1
        try:
            groups = read_row(row, parse, ledger, account, not strict)
            yield from list(map(text_to_chat, groups)) if reading.as_chat else groups
            if any(group.judgements for group in groups):
                margins.add(row.origin, has_margin(ledger.names.rename(row.value)))
        except Drop as reason:
            account.drop(str(reason), row.origin)
        except BadRow as fault:
            if strict and not isinstance(fault, FunctionFault):
                ledger.refuse(account.read)  # an unused column may explain the fault
                raise file_checks.bad_row_error(fault, row.origin, account.format, reading) from None
            account.drop(f"cannot be read: {fault}", row.origin)
            failed.setdefault(str(fault), Origins()).append(row.origin)
        if account.read >= DETECTION_ROWS and strict:
            ledger.refuse(account.read)
    if failed and strict:  # reported together: one mistake in a function usually affects many rows
        raise file_checks.function_error(failed, account)


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
