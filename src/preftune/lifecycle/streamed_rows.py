"""Rows of a stream to groups of text, and the sample of them with which a run is planned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from preftune.config.schema import DataConfig
from preftune.data.read_groups import as_chats, parser_of, read_row, with_known_columns
from preftune.data.split import normalised_prompt_key
from preftune.errors import DataError
from preftune.formats import file_checks, layouts, ratings, trees
from preftune.formats.account import Account
from preftune.formats.columns import ColumnLedger
from preftune.formats.json_cells import Decoding, decode_row, plan_decoding
from preftune.formats.names import column_names
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import BadRow, Drop
from preftune.formats.where import Filter, conditions
from preftune.lifecycle.data import TextData, read_sources
from preftune.lifecycle.sources import evaluation_sources, training_sources
from preftune.sources.parts import Parts, parts_of
from preftune.sources.read import fingerprint
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup

SAMPLE = 256  # rows of each source with which the run is planned
HEAD = 100  # rows from which the format is detected
OVERLAP = "its prompt is also in the evaluation data"


class StreamedRows:
    """Turns rows of a stream into groups of text. Format and columns are those of the first rows.

    Raises DataError for data that have to be read completely before the first group is made.
    """

    def __init__(self, parts: Parts, reading: Reading, excluded: set[str]) -> None:
        account = Account(parts.name)
        reading = with_known_columns(parts.name, reading, account)
        self._name, self._reading, self._excluded = parts.name, reading, excluded
        head = list(islice(parts.rows(), HEAD))
        self._decoding: Decoding | None = None
        if reading.format in ("auto", *BY_NAME):
            self._decoding = plan_decoding([row.value for row in head if not row.fault], reading)
        self._conditions = conditions(reading.where)
        head = list(Filter(self._conditions, account).rows(map(self._decoded, head)))
        self._layout = layouts.layout_of([row.value for row in head]) if layouts.may_rewrite(reading) else None
        self._origin_of: dict[str, str] = {}
        head = [layouts.rewrite(row, self._layout, self._origin_of) for row in head]
        self._names = column_names(reading.columns, reading.ignore)
        rows = self._names.readable(head)
        if ratings.are_ratings(rows, reading.aspect) or trees.are_messages(rows):
            fix = "write one row per prompt with preftune data convert FILE --to groups, or remove data.stream"
            raise DataError("rows that have to be joined cannot be streamed", where=parts.name, fix=fix)
        self._parse, _ = parser_of(rows, head, iter(head), self._names, reading, account)
        self.format = account.format
        ledger = self._ledger()
        for row in head:
            try:
                read_row(row, self._parse, ledger, account, drop=True)
            except (Drop, BadRow):
                continue
        self._are_chats = ledger.has_context

    def _ledger(self) -> ColumnLedger:
        return ColumnLedger(self._name, self.format, self._names, self._origin_of)

    def groups(self, chunk: Sequence[Row], account: Account) -> list[PreferenceGroup]:
        """Return the groups of some rows. Rows that are dropped are counted."""
        strict, ledger = self._reading.bad_rows == "error", self._ledger()
        groups: list[PreferenceGroup] = []
        for row in Filter(self._conditions, account).rows(map(self._decoded, chunk)):
            account.read += 1
            row = layouts.rewrite(row, self._layout, self._origin_of)
            try:
                own = read_row(row, self._parse, ledger, account, not strict)
            except Drop as reason:
                account.drop(str(reason), row.origin)
            except BadRow as fault:
                if strict:
                    ledger.refuse(account.read)
                    raise file_checks.bad_row_error(fault, row.origin, self.format, self._reading) from None
                account.drop(f"cannot be read: {fault}", row.origin)
            else:
                groups += self._allowed(own, row, account)
        if strict:
            ledger.refuse(account.read)
        if ledger.has_context and not self._are_chats:
            what = f"a row has a system text, a history or tools, but none of the first {HEAD} rows has one"
            raise DataError(what, where=chunk[0].origin, fix="set data.as_chat=true, so that all rows are chats")
        return list(file_checks.text_prompts_to_chats(groups, account)) if self._are_chats else groups

    def _allowed(self, groups: Sequence[PreferenceGroup], row: Row, account: Account) -> list[PreferenceGroup]:
        """Return the groups whose prompt is not in the evaluation data."""
        account.format = self.format
        groups = as_chats(groups, self._reading, account)
        kept = [group for group in groups if normalised_prompt_key(group) not in self._excluded]
        if len(kept) < len(groups):
            account.drop(OVERLAP, row.origin)
        return kept

    def _decoded(self, row: Row) -> Row:
        if row.fault or self._decoding is None:
            return row
        value, fault = decode_row(row.value, self._decoding)
        return Row({}, row.origin, fault) if fault else Row(value, row.origin)


def read_sample(config: DataConfig, has_template: bool = False) -> TextData:
    """Return the first rows of each streamed source, and the evaluation data, which are not streamed.

    The fingerprint is that of the evaluation data and of what is known about the content of the sources.
    """
    train, separate = training_sources(config, has_template), evaluation_sources(config, has_template)
    held_out, more = read_sources(separate, None, config.max_dropped, len(train))
    excluded = set() if config.allow_overlap else set(map(normalised_prompt_key, held_out))
    groups: list[PreferenceGroup] = []
    accounts: list[Account] = []
    digest = hashlib.sha256()
    for number, source in enumerate(train):
        parts = parts_of(source.path)
        digest.update(parts.stamp.encode())
        rows = StreamedRows(parts, source.reading, excluded)
        account = Account(source.path, rows.format)
        sample = rows.groups(list(islice(parts.rows(), SAMPLE)), account)
        groups += [replace(group, source=number) for group in sample]
        accounts.append(account)
    if separate:
        digest.update(fingerprint([source.path for source in separate]).encode())
    names = tuple(source.name for source in (*train, *separate))
    message = f"data.stream: the run is planned with the first {SAMPLE} rows of each source, which are counted here"
    return TextData(groups, held_out, (*accounts, *more), digest.hexdigest(), messages=(message,), names=names)
