"""Account of the rows of a data set: each row is either kept or counted under a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.errors import DataError, did_you_mean
from preftune.formats.origins import Origins

#: Advice for the most frequent reason for dropping rows.
REPAIRS = {
    "the response does not end with an assistant turn": "end each response with an assistant turn",
    "the response does not begin with an assistant turn": "move the turns before its assistant turn to the prompt",
    "prompts of chosen and rejected differ": "give both responses the same prompt",
    "the dialogue does not begin with the prompt": "write only the response, or the prompt followed by the response",
    "one text is the beginning of the other": "put the prompt into a separate column",
    "no assistant turn after another turn": "end each dialogue with an assistant turn",
    **dict.fromkeys(("tied scores", "identical responses"), "remove these rows"),
    "tie": "check that the responses differ, or use a different judge",
}
LEFT_OUT = "left out by data.where: not "
LISTED = "left out by data.drop"
UNCOMPARED = "the message has no ranked alternative"  # in conversation trees
#: A larger share of dropped rows means that the rows are misread, so an error does not offer to accept it.
MOST_ACCEPTED = 0.5
#: Reasons that say nothing about the quality of the data. They do not count towards data.max_dropped.
EXPECTED = ("tie", "tied scores", UNCOMPARED)
MAX_REASONS = 12  # reasons listed separately


@dataclass(slots=True)
class Account:
    """Counts and reasons for one data source. A row counts once, even if it gives several groups.

    dropped    {reason: origins (file:line) of the dropped rows, in reading order}
    noted      {what was done to a row that is kept: origins}
    columns    {column: status} (see columns.STATUS_TEXT)
    unmatched  names in data.ignore that no row has
    unlisted   rows in data.drop that the source does not have
    unread     columns that occur only in dropped rows and that no format reads
    remedies   what to do about dropped rows other than repairing them
    """

    source: str
    format: str = ""
    read: int = 0
    dropped: dict[str, Origins] = field(default_factory=dict)
    noted: dict[str, Origins] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.read - len({origin for origins in self.dropped.values() for origin in origins})

    def drop(self, reason: str, origin: str) -> None:
        _add(self.dropped, reason, origin)

    def note(self, what: str, origin: str) -> None:
        _add(self.noted, what, origin)

    def record(self) -> dict[str, Any]:
        """Return the account as JSON; `from_record` reads it."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        lists = {name: {text: o.record() for text, o in getattr(self, name).items()} for name in ("dropped", "noted")}
        return {**fields, **lists}

    def rename_note(self, old: str, new: str) -> None:
        """Change the text of a note."""
        self.noted = {new if text == old else text: origins for text, origins in self.noted.items()}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Replace the account by the one that `record` has returned."""
        for name in _PLAIN:
            setattr(self, name, record[name])
        for name in ("dropped", "noted"):
            setattr(self, name, {text: Origins.from_record(o) for text, o in record[name].items()})

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Account:
        account = Account(record["source"])
        account.restore(record)
        return account

    def lines(self) -> list[str]:
        """Return the account as lines of text."""
        return [
            f"{self.source}: {self.read} rows read as {self.format!r}, {self.kept} kept",
            *self.column_lines(),
            *(f"  dropped {text}" for text in self._texts(self.dropped)),
            *(f"  note    {text}" for text in self._texts(self.noted)),
        ]

    def column_lines(self) -> list[str]:
        """Return one line with the columns by status, or no line if there are no columns."""
        by_status: dict[str, list[str]] = {"used": []}
        for column, text in self.columns.items():
            status, renamed, name = text.partition(" as ")
            by_status.setdefault(status, []).append(f"{column or repr(column)}{renamed}{name}")
        line = "; ".join(f"{status}: {', '.join(columns)}" for status, columns in by_status.items() if columns)
        return [f"  columns {line}"] if line else []

    def _count(self, origins: Sequence[str]) -> str:
        return f"{len(origins)} ({format_origins(origins, self.source)})"

    def _why(self) -> str:
        unread = ", ".join(map(repr, self.unread if self.kept == 0 else []))
        columns = f"; columns that were not used: {unread}" if unread else ""
        return "dropped " + "; ".join(self._texts(self.dropped)) + columns

    def _texts(self, reasons: Mapping[str, Sequence[str]]) -> list[str]:
        """Describe each reason. Beyond MAX_REASONS, the rarest are combined, because a reason may quote its row."""
        many = len(reasons) > MAX_REASONS
        ranked = sorted(reasons, key=lambda reason: -len(reasons[reason])) if many else list(reasons)
        texts = [  # a note about the whole source has no rows to count
            reason if reasons[reason] == [self.source] else f"{self._count(reasons[reason])}: {reason}"
            for reason in ranked[:MAX_REASONS]
        ]
        rare = [origin for reason in ranked[MAX_REASONS:] for origin in reasons[reason]]
        return [*texts, f"{self._count(rare)}: {len(ranked) - MAX_REASONS} other reasons"] if rare else texts

    def _repair(self) -> str:
        reason = max(self.dropped, key=lambda reason: len(self.dropped[reason]), default="")
        usual = f"look at the function {self.format}" if ".py:" in self.format else "repair the rows"
        return "; or ".join([REPAIRS.get(reason, usual), *self.remedies])

    def check(self, max_dropped: float, repair: str = "") -> None:
        """Raise DataError if no row was kept, or if more than the share `max_dropped` of the rows was dropped."""
        repair = repair or self._repair()
        if self.read == 0:
            raise DataError("the file has no rows", where=self.source, fix="add rows, or pass a different file")
        if self.kept == 0:
            raise DataError(f"none of the {self.read} rows can be used", where=self.source, why=self._why(), fix=repair)
        expected = {o for reason, origins in self.dropped.items() if is_expected(reason) for o in origins}
        dropped = self.read - self.kept - len(expected)
        share = dropped / (self.read - len(expected))
        if share > max_dropped:
            allowed = math.ceil(share * 100) / 100
            raise DataError(
                f"{dropped} of {self.read - len(expected)} rows were dropped ({share:.0%})",
                where=self.source,
                why=self._why(),
                fix=repair
                + (f", or accept this share with data.max_dropped={allowed:g}" if allowed <= MOST_ACCEPTED else ""),
            )


def together(accounts: Sequence[Account]) -> Account:
    """Return one account for several sources; the only one as it is."""
    if len(accounts) == 1:
        return accounts[0]
    result = Account(", ".join(account.source for account in accounts))
    result.format = ", ".join(dict.fromkeys(account.format for account in accounts))
    for account in accounts:
        result.read += account.read
        for own, lists in ((result.dropped, account.dropped), (result.noted, account.noted)):
            for text, origins in lists.items():
                for origin in origins:
                    own.setdefault(text, Origins()).append(origin)
        result.columns |= {name: status for name, status in account.columns.items() if name not in result.columns}
        result.remedies += [remedy for remedy in account.remedies if remedy not in result.remedies]
    return result


def require_matched(accounts: Sequence[Account]) -> None:
    """Raise DataError if data.ignore names a column, or data.drop a row, that none of these sources has."""
    unlisted = set.intersection(*(set(account.unlisted) for account in accounts)) if accounts else set()
    for origin in sorted(unlisted):
        others = f", and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
        raise DataError(
            f"data.drop lists the row {origin!r}{others}, which the data do not have",
            where=accounts[0].source,
            fix="save the list again from a report of a run on these data, or remove these lines",
        )
    missing = set.intersection(*(set(account.unmatched) for account in accounts)) if accounts else set()
    for column in sorted(missing):
        columns = {name for account in accounts for name in account.columns}
        raise DataError(
            f"data.ignore lists the column {column!r}, which no row has",
            where=accounts[0].source,
            fix=did_you_mean(column, columns),
        )


_PLAIN = ("source", "format", "read", "columns", "unmatched", "unread", "remedies", "unlisted")


def is_expected(reason: str) -> bool:
    """Return whether a reason for dropping rows says nothing about the quality of the data."""
    return reason in EXPECTED or reason == LISTED or reason.startswith(LEFT_OUT)


def _add(lists: dict[str, Origins], text: str, origin: str) -> None:
    origins = lists.get(text)
    if origins is None:
        origins = lists[text] = Origins()
    if origins.last != origin:  # the groups of a row are consecutive
        origins.append(origin)


def format_origins(origins: Sequence[str], source: str = "", limit: int = 3) -> str:
    """Return the first `limit` origins, or only their line numbers if all origins are in `source`."""
    prefix = f"{source}:"
    shown, more = list(origins[:limit]), ", ..." if len(origins) > limit else ""
    begin = (
        origins.all_begin_with
        if isinstance(origins, Origins)
        else lambda text: all(o.startswith(text) for o in origins)
    )
    if source and begin(prefix):
        lines = "line" if len(origins) == 1 else "lines"
        return f"{lines} {', '.join(origin.removeprefix(prefix) for origin in shown)}{more}"
    return ", ".join(shown) + more
