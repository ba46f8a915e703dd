"""Join rated responses to the same prompt, one per row (HelpSteer, HelpSteer2), into rows of the format `ranked`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.column_roles import completion_column, pair_columns, prompt_column
from preftune.formats.names import ColumnNames
from preftune.formats.parse_votes import BETTER, SAFER
from preftune.formats.values import Fields, as_number
from preftune.sources.rows import Row


def are_ratings(rows: Sequence[Fields], aspect: str) -> bool:
    """Return whether each row has a prompt, one response and a number in the column `aspect`."""
    return bool(aspect and rows) and all(
        prompt_column(row) is not None
        and completion_column(row) not in (None, aspect)
        and pair_columns(row) is None
        and as_number(row.get(aspect)) is not None
        for row in rows
    )


def reads_aspect(format: str, columns: Collection[str]) -> bool:
    """Return whether the parser of this format used data.aspect."""
    return (format == "votes" and {BETTER, SAFER} <= set(columns)) or (format == "ranked" and "scores" not in columns)


def no_aspect(aspect: str, source: str) -> DataError:
    """Return the error for a data.aspect that nothing in the data uses."""
    return DataError(
        f"data.aspect is {aspect!r}, but the rows have no judgements to choose from",
        where=source,
        why="it applies to PKU-SafeRLHF, to responses with annotations, and to rows with one rated response",
        fix="remove data.aspect, or name a rating column of the file",
    )


def joined(rows: Iterable[Row], aspect: str, names: ColumnNames, account: Account) -> Iterator[Row]:
    """Yield one row per run of adjacent rows with the same prompt, with their `responses` and `scores`.

    Rows without these columns are yielded as they are. The first row of a run gives the other columns and the origin.
    """
    account.note(f"adjacent rows with the same prompt were joined and compared by {aspect!r}", account.source)
    pending: list[tuple[Row, Any, Any]] = []  # row, its response and its rating
    before = None
    for row in rows:
        value = {} if row.fault else names.rename(row.value)
        prompt, completion = prompt_column(value), completion_column(value)
        if row.fault or prompt is None or completion is None or aspect not in value:
            yield from _closed(pending, account)
            pending, before = [], None
            yield row
            continue
        same = (value[prompt], value.get("system"), value.get("input"))
        if pending and same != before:
            yield from _closed(pending, account)
            pending = []
        before = same
        rest = {k: v for k, v in row.value.items() if names.new_name.get(k, k) not in (completion, aspect)}
        pending.append((Row(rest, row.origin), value[completion], value[aspect]))
    yield from _closed(pending, account)


def _closed(pending: list[tuple[Row, Any, Any]], account: Account) -> Iterator[Row]:
    if not pending:
        return
    (first, _, _), *others = pending
    account.read += len(others)  # the reader counts the first one
    if not others:
        account.read += 1
        what = "no adjacent row has a different response to the same prompt; sort the file by prompt"
        account.drop(what, first.origin)
        return
    responses, scores = [response for _, response, _ in pending], [score for _, _, score in pending]
    yield Row({**first.value, "responses": responses, "scores": scores}, first.origin)
