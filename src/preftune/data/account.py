"""The account of what happened to the rows of a data set: every row read is kept or counted under a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from preftune.errors import DataError

REPAIR = "repair the rows"
REASONS = 12  # that are told one by one


@dataclass(slots=True)
class Account:
    """`dropped` and `noted` list the origins (file:line) under each reason, in the order they were met.

    A noted row is kept; the note says what was done to it. A row counts once, however many groups it made.
    """

    source: str
    format: str = ""
    read: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

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
            *(f"  dropped {text}" for text in self._texts(self.dropped)),
            *(f"  note    {text}" for text in self._texts(self.noted)),
        ]

    def _count(self, origins: Sequence[str]) -> str:
        return f"{len(origins)} ({places(origins, self.source)})"

    def _why(self) -> str:
        return "dropped " + "; ".join(self._texts(self.dropped))

    def _texts(self, found: dict[str, list[str]]) -> list[str]:
        """A text for each reason; the rare ones of many in a single one, since a reason may quote its row."""
        ranked = sorted(found, key=lambda reason: -len(found[reason])) if len(found) > REASONS else list(found)
        texts = [f"{self._count(found[reason])}: {reason}" for reason in ranked[:REASONS]]
        rare = [origin for reason in ranked[REASONS:] for origin in found[reason]]
        return [*texts, f"{self._count(rare)}: {len(ranked) - REASONS} other reasons"] if rare else texts

    def check(self, max_dropped: float, repair: str = "") -> None:
        """Raises DataError if nothing is left, or if more than the share `max_dropped` was dropped."""
        repair = repair or (f"look at the function {self.format}" if ".py:" in self.format else REPAIR)
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
