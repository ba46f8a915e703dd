"""Read prompts from rows with a prompt column, or from data of any other format, whose responses are ignored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from preftune.chat.faults import report_faults
from preftune.chat.render import Renderer
from preftune.data.read_groups import read_groups, with_known_columns
from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.column_roles import TEXT_PROMPTS, prompt_of
from preftune.formats.columns import ColumnLedger, TrackedRow
from preftune.formats.file_checks import text_prompts_to_chats
from preftune.formats.json_cells import decode_cells
from preftune.formats.names import ColumnNames, column_names
from preftune.formats.parsers import Reading
from preftune.formats.tools import for_template
from preftune.formats.values import BadRow, Fields, text_of
from preftune.formats.where import filter_of
from preftune.sources.read import read
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup, Text

if TYPE_CHECKING:
    from preftune.types import Ids

LOOKED_AT = 20  # rows that show whether the data are prompts
#: Columns of formats whose parsers must decide what the prompt is, as `prompt` may be only a part of the chat.
ANSWERS = {"chosen", "rejected", "completion", "messages", "conversations", "judgements"}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt, its token ids, and its origin as "file:line"."""

    text: Text
    ids: Ids
    origin: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The training prompts and the held-out prompts of a run."""

    train: list[Prompt]
    held_out: list[Prompt]


def read_prompts(source: str | Sequence[str], reading: Reading | None = None) -> tuple[list[PreferenceGroup], Account]:
    """Read the distinct prompts of `source`, in order, as groups without responses. Raises DataError for a bad row."""
    reading = reading or Reading()
    account = Account(source if isinstance(source, str) else ", ".join(source), "prompts")
    reading = with_known_columns(source, reading, account)
    selected = filter_of(reading, account)
    rows = decode_cells(read(source, account.note), reading, account.note)
    head = list(islice(rows, LOOKED_AT))
    names = column_names(reading.columns, reading.ignore)
    if reading.format == "auto" and _are_prompts(head, names):
        kept = islice(selected.rows(chain(head, rows)), reading.limit)
        prompts = list(_prompts(kept, names, account, reading.bad_rows == "drop"))
        selected.require_columns()
    else:
        groups, account = read_groups(source, reading)
        prompts = [PreferenceGroup(group.prompt, (), origin=group.origin) for group in groups]
    distinct: dict[Text, PreferenceGroup] = {}
    for group in prompts:
        if group.prompt in distinct:
            account.note("the row has the prompt of an earlier row, which is used only once", group.origin)
        distinct.setdefault(group.prompt, group)
    return list(distinct.values()), account


def _are_prompts(head: Sequence[Row], names: ColumnNames) -> bool:
    """Return whether the rows have a prompt column and no column of a format that defines the prompt."""
    columns = {names.new_name.get(name, name) for row in head for name in row.value if name not in names.ignored}
    return not columns.isdisjoint(TEXT_PROMPTS) and not columns & ANSWERS


def _prompts(rows: Iterable[Row], names: ColumnNames, account: Account, drop: bool) -> Iterator[PreferenceGroup]:
    """Yield one group without responses per row. Raises DataError for columns of the prompt that are not read."""
    ledger = ColumnLedger(account.source, "prompts", names)
    groups = []
    for row in rows:
        account.read += 1
        try:
            if row.fault:
                raise BadRow(row.fault)
            ledger.see(row.value)
            value = TrackedRow(names.rename(row.value))
            (group,) = for_template([PreferenceGroup(prompt_of(value), (), origin=row.origin)], value)
            ledger.record(row.value, value, [group], row.origin)
            groups.append(group)
        except BadRow as fault:
            if not drop:
                raise DataError(str(fault), where=row.origin, fix=fault.fix or "repair or remove the row") from None
            account.drop(f"cannot be read: {fault}", row.origin)
    ledger.refuse(account.read)
    ledger.require_mapped()
    account.columns, account.unmatched = ledger.statuses(), ledger.unmatched()
    yield from text_prompts_to_chats(groups, account) if ledger.has_context else groups


def text_prompt(row: Fields) -> Text:
    """Return the prompt of a row."""
    return text_of(row, "prompt")


def encode_prompts(
    groups: Sequence[PreferenceGroup], renderer: Renderer, longest: int, account: Account
) -> list[Prompt]:
    """Tokenise prompts. Those that are too long, or that the chat template refuses, are dropped and counted."""
    result, faults = [], []
    for group, encoded in zip(groups, renderer.encode(groups), strict=True):
        if encoded.fault:
            faults.append((group.origin, encoded.fault))
            continue
        for note in encoded.notes:
            account.note(note, group.origin)
        if len(encoded.prompt_ids) > longest:
            account.drop(f"the prompt is longer than {longest} tokens", group.origin)
        elif not encoded.prompt_ids:
            account.drop("the prompt has no tokens", group.origin)
        else:
            result.append(Prompt(group.prompt, np.asarray(encoded.prompt_ids, dtype=np.int32), group.origin))
    for origin, reason in report_faults(faults, len(groups), "drop", account).items():
        account.drop(reason, origin)
    return result
