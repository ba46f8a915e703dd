"""The account of what happened to the rows of a data set: every row read is kept or counted under a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from preftune.errors import DataError, did_you_mean

REPAIR = "repair the rows"
#: What to do about the reason that most rows were dropped for.
REPAIRS = {
    "several turns after the prompt": "end each response after its first assistant turn; more are not supported",
    "prompts of chosen and rejected differ": "give both responses the same prompt",
    "the dialogue does not begin with the prompt": "let the responses hold the answer alone, or repeat the prompt",
    "one text is the beginning of the other": "put the prompt into a column of its own",
    "no assistant turn after another turn": "end each dialogue with an assistant turn",
    **dict.fromkeys(("tied scores", "identical responses"), "remove these rows"),
    "tie": "check that the responses differ, or use another judge",
}
REASONS = 12  # that are told one by one


@dataclass(slots=True)
class Account:
    """`dropped` and `noted` list the origins (file:line) under each reason, in the order they were met.

    A noted row is kept; the note says what was done to it. A row counts once, however many groups it made.
    `columns` says what became of each column (columns.FATES). `unmatched` are names in data.ignore that no row has.
    `unread` are columns that only dropped rows have and that no format reads. `remedies` are what to do about the
    dropped rows besides repairing them.
    """

    source: str
    format: str = ""
    read: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.read - len({origin for origins in self.dropped.values() for origin in origins})

    def drop(self, reason: str, origin: str) -> None:
        _add(self.dropped.setdefault(reason, []), origin)

    def note(self, what: str, origin: str) -> None:
        _add(self.noted.setdefault(what, []), origin)

    def lines(self) -> list[str]:
        """The account in words."""
        return [
            f"{self.source}: {self.read} rows read as {self.format!r}, {self.kept} kept",
            *self.column_lines(),
            *(f"  dropped {text}" for text in self._texts(self.dropped)),
            *(f"  note    {text}" for text in self._texts(self.noted)),
        ]

    def column_lines(self) -> list[str]:
        """What became of the columns, in one line; no line if nothing is known about them."""
        fates: dict[str, list[str]] = {"used": []}
        for column, fate in self.columns.items():
            status, renamed, name = fate.partition(" as ")
            fates.setdefault(status, []).append(f"{column or repr(column)}{renamed}{name}")
        fates = {fate: columns for fate, columns in fates.items() if columns}
        told = "; ".join(f"{fate}: {', '.join(columns)}" for fate, columns in fates.items())
        return [f"  columns {told}"] if told else []

    def _count(self, origins: Sequence[str]) -> str:
        return f"{len(origins)} ({places(origins, self.source)})"

    def _why(self) -> str:
        unread = ", ".join(map(repr, self.unread if self.kept == 0 else []))
        columns = f"; columns that were not used: {unread}" if unread else ""
        return "dropped " + "; ".join(self._texts(self.dropped)) + columns

    def _texts(self, found: dict[str, list[str]]) -> list[str]:
        """A text for each reason; the rare ones of many in a single one, since a reason may quote its row."""
        ranked = sorted(found, key=lambda reason: -len(found[reason])) if len(found) > REASONS else list(found)
        texts = [
            reason if found[reason] == [self.source] else f"{self._count(found[reason])}: {reason}"  # no row's own
            for reason in ranked[:REASONS]
        ]
        rare = [origin for reason in ranked[REASONS:] for origin in found[reason]]
        return [*texts, f"{self._count(rare)}: {len(ranked) - REASONS} other reasons"] if rare else texts

    def _repair(self) -> str:
        reason = max(self.dropped, key=lambda reason: len(self.dropped[reason]), default="")
        usual = f"look at the function {self.format}" if ".py:" in self.format else REPAIR
        return "; or ".join([REPAIRS.get(reason, usual), *self.remedies])

    def check(self, max_dropped: float, repair: str = "") -> None:
        """Raises DataError if nothing is left, or if more than the share `max_dropped` was dropped."""
        repair = repair or self._repair()
        if self.read == 0:
            raise DataError("no rows: the file is empty", where=self.source)
        if self.kept == 0:
            raise DataError(f"none of its {self.read} rows can be used", where=self.source, why=self._why(), fix=repair)
        share = 1 - self.kept / self.read
        if share > max_dropped:
            raise DataError(
                f"{self.read - self.kept} of {self.read} rows dropped ({share:.0%})",
                where=self.source,
                why=self._why(),
                fix=f"{repair}, or accept the loss with data.max_dropped=1",
            )


def require_matched(accounts: Sequence[Account]) -> None:
    """Raises DataError if data.ignore names a column that no row of any of these data has."""
    missing = set.intersection(*(set(account.unmatched) for account in accounts)) if accounts else set()
    for column in sorted(missing):
        known = {name for account in accounts for name in account.columns}
        raise DataError(
            f"data.ignore names {column!r}, and no row has a column of that name",
            where=accounts[0].source,
            fix=did_you_mean(column, known),
        )


def _add(origins: list[str], origin: str) -> None:
    if origins[-1:] != [origin]:  # the groups of one row follow each other
        origins.append(origin)


def places(origins: Sequence[str], source: str = "", most: int = 3) -> str:
    """The first few origins; where all lie in `source`, their line numbers alone."""
    prefix = f"{source}:"
    if source and all(origin.startswith(prefix) for origin in origins):
        origins = [origin.removeprefix(prefix) for origin in origins]
        lines = "line" if len(origins) == 1 else "lines"
        return f"{lines} {', '.join(origins[:most])}{', ...' if len(origins) > most else ''}"
    return ", ".join(origins[:most]) + (", ..." if len(origins) > most else "")
