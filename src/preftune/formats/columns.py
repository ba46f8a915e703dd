"""What became of each column: used, known as metadata, named in data.ignore, or refused.

A row is first brought under preftune's names (`Names`); the parser then reads it through a `Tracked` row, which notes
the columns whose values were read. So "used" is what the parser really did. The `Ledger` decides about the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.names import (
    CANONICAL,
    Names,
    fields_inside,
    near_name,
    no_such_column,
    quoted,
    setting,
)
from preftune.formats.slots import SYSTEMS, prompt_column
from preftune.formats.values import Fields, is_blank
from preftune.types import PreferenceGroup

TEXT_PROMPTS = ("prompt", "instruction", "question", "query")
#: What became of a column, as it is printed.
FATES = {
    "used": "used",
    "ignored": "ignored",
    "refused": "refused",
    "metadata": "metadata",
    "repeated": "repeated from used columns",
    "dropped": "in dropped rows only",
    "empty": "empty",
}
BETTER, SAFER = "better_response_id", "safer_response_id"  # the two verdicts of PKU-SafeRLHF
APPENDED = metadata.CONTEXT - {*SYSTEMS, "history"} | {"text"}  # what `input` may be called
CONTEXT = "belongs to the prompt, and this format has no place for it"


class Tracked(dict[str, Any]):
    """A row that notes whose values were read."""

    def __init__(self, row: Fields) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def items(self) -> Any:
        self.read |= self.keys()
        return super().items()

    def values(self) -> Any:
        self.read |= self.keys()
        return super().values()

    def quietly(self) -> Iterator[tuple[str, Any]]:
        """Names and values, without a note."""
        return iter(super().items())


@dataclass(slots=True)
class Ledger:
    """What became of the columns of a file, row by row.

    seen      all columns of the file, those of rows that could not be read too
    became    {column: {"used" | "metadata" | "repeated" | "empty" | "ignored" | "refused" | "dropped": rows};
              "dropped" counts rows without anything to learn, whose parser may have stopped before it read the column
    refused   {column: (why, where it was met)}
    near      {column that is refused: the name that it may stand for}
    inside    names of data.ignore that are fields of judgements or of OpenAI's `input`
    """

    source: str
    format: str
    names: Names
    seen: set[str] = field(default_factory=set)
    became: dict[str, Counter[str]] = field(default_factory=dict)
    refused: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    in_context: bool = False
    inside: set[str] = field(default_factory=set)
    _suspects: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # misspelt names in dropped rows

    def file(self, raw: Fields, row: Tracked, groups: list[PreferenceGroup] | None, origin: str) -> list[str]:
        """Enter a row that was read and return the columns that are refused. `groups` is None for a dropped row."""
        self._file_left_out(raw, row)
        said: set[str] | None = None
        refused = []
        for name, value in row.quietly():
            column = self.names.of_file(name)
            if name in row.read:
                self._file_used(column, name, value)
            elif groups is None:
                self._file_dropped(column, name, value, row, origin)
            else:
                status, why = self._quick(name, value, row)
                if not status:
                    said = metadata.said_in(groups) if said is None else said
                    status, why = self._compared(name, value, row, said, origin)
                self._enter(column, status)
                if status == "refused":
                    self.refused.setdefault(column, (why, []))[1].append(origin)
                    refused.append(column)
        return refused

    def _file_left_out(self, raw: Fields, row: Tracked) -> None:
        if self.names.ignored:
            self.inside |= self.names.ignored & fields_inside(raw)
        for column in raw:
            if column in self.names.ignored:
                self._enter(column, "ignored")
            elif self.names.new_name.get(column, column) not in row:  # blank, and its name is given to another column
                self._enter(column, "empty")

    def _file_used(self, column: str, name: str, value: Any) -> None:
        blank = is_blank(value)
        self._enter(column, "empty" if blank else "used")
        self.in_context |= not blank and (name in SYSTEMS or (name == "history" and not isinstance(value, str)))

    def _file_dropped(self, column: str, name: str, value: Any, row: Tracked, origin: str) -> None:
        self._enter(column, "dropped")
        if name in CANONICAL:
            return
        if near_name(name, row) and metadata.texts_in(value) and not metadata.is_metadata(name, row):
            self._suspects.setdefault(column, (self._not_used(name, row), []))[1].append(origin)

    def _enter(self, column: str, status: str) -> None:
        if column not in self.became:
            self.became[column] = Counter()
        self.became[column][status] += 1

    def _quick(self, name: str, value: Any, row: Tracked) -> tuple[str, str]:
        """What a column is that was not read, by its name and the kind of its value; "" if it must be compared."""
        status, why = "", ""
        if is_blank(value):
            status = "empty"
        elif metadata.unusable(name):
            status, why = "refused", metadata.unusable(name)
        elif self.format == "prompts":  # answers, references and labels of a prompt are not part of it
            status = "" if name in metadata.CONTEXT else "metadata"
        elif name in metadata.GRADES and not (name == "margin" and self.format == "ranked"):
            status, why = "refused", f"has no meaning in the format {self.format!r}"
        elif name in metadata.RATINGS and self.format == "sft-completion":
            status, why = "refused", "says how good the response is, and a demonstration has no place for that"
        elif self.format.startswith("sft-") and metadata.says_bad(name, value):
            self.near[self.names.of_file(name)] = "label"
            status, why = "refused", "says that the response is bad, and a demonstration is a good one"
        elif self._describes(name, value, row):
            status = "metadata"
        return status, why

    def _describes(self, name: str, value: Any, row: Tracked) -> bool:
        """Whether a column only describes its row, by its name or because it holds no words."""
        if name == SAFER and value != row.get(BETTER):
            return False
        if metadata.is_metadata(name, row):
            return not (self.format == "preference-implicit" and metadata.may_ask(name, value))
        if name in metadata.CONTEXT or not metadata.is_number(value):
            return not metadata.texts_in(value)
        return not metadata.texts_in(value) or near_name(name, row) not in (*TEXT_PROMPTS, "input")

    def _compared(self, name: str, value: Any, row: Tracked, said: set[str], origin: str) -> tuple[str, str]:
        if name == SAFER:
            self.notes.append((f"column {SAFER!r} names the other response than {BETTER!r}, which was used", origin))
            return "metadata", ""
        if metadata.repeats(name, value, said):
            return "repeated", ""
        if self.format == "ultrafeedback" and name in TEXT_PROMPTS and name == prompt_column(row):
            self.notes.append((f"column {name!r} differs from the prompt in the dialogues, which was used", origin))
            return "metadata", ""
        if name in metadata.CONTEXT:
            return "refused", CONTEXT
        return "refused", self._not_used(name, row)

    def _not_used(self, name: str, row: Tracked) -> str:
        near = near_name(name, row)
        if not near:
            return "is not used"
        self.near[self.names.of_file(name)] = near
        return f"is not used (did you mean {near!r}?)"

    def refuses_most_of(self, rows: int) -> bool:
        """Whether refused columns made most rows unusable, so that dropping them would leave little."""
        return 2 * len({origin for _, origins in self.refused.values() for origin in origins}) > rows

    def refuse(self, rows: int, nothing_kept: bool = False) -> None:
        """Raises DataError if a column was refused, or if nothing was kept and a column looks like a misspelt one."""
        self.refused = self.refused or (self._suspects if nothing_kept else {})
        if not self.refused:
            return
        parts = [
            f"column {column!r} {why} ({len(origins)} of {rows} rows)"
            for column, (why, origins) in sorted(self.refused.items(), key=lambda item: -len(item[1][1]))
        ]
        first = min((origins[0] for _, origins in self.refused.values()), key=_line)
        raise DataError(
            "; ".join(parts),
            where=first,
            why=f"the rows were read as {self.format!r} from {self._list('used') or 'no column'}",
            fix=self._fix(),
        )

    def _fix(self) -> str:
        them = "it" if len(self.refused) == 1 else "them"
        leave = f"to train without {them}, set data.ignore=[{', '.join(map(quoted, self.refused))}]"
        mapping: dict[str, str] = {}
        unknown = [column for column, (why, _) in self.refused.items() if why.startswith(("is not used", CONTEXT))]
        has_text_prompt = any(self.became.get(column, Counter())["used"] for column in TEXT_PROMPTS)
        for column in self.refused:
            if column in self.near:
                mapping.setdefault(self.near[column], column)
            elif column in APPENDED and has_text_prompt and "input" not in self.became:
                mapping.setdefault("input", column)
        if mapping:
            appended = " (`input` is appended to the prompt)" if "input" in mapping else ""
            return f"set {setting(mapping)}{appended}; {leave}"
        return f"{leave}; or name what they are: data.columns={{prompt: COLUMN, ...}}" if unknown else leave

    def _list(self, status: str) -> str:
        return ", ".join(repr(column) for column, counts in self.became.items() if counts[status])

    def table(self) -> dict[str, str]:
        """What became of each column, in words: the first of these that happened to it in any row."""
        words = {}
        for column in (*self.became, *sorted(self.seen - self.became.keys())):
            counts = self.became.get(column, Counter({"dropped": 1}))
            order = ("used", "ignored", "refused", "metadata", "repeated", "dropped", "empty")
            fate = next(status for status in order if counts[status])
            new = self.names.new_name.get(column)
            words[column] = f"used as {new}" if new and fate == "used" else FATES[fate]
        return words

    def unread(self) -> list[str]:
        """Columns that only dropped rows have and that no format reads."""
        return [c for c, fate in self.table().items() if fate == FATES["dropped"] and c not in CANONICAL]

    def unmatched(self) -> list[str]:
        """Names in data.ignore that no row has."""
        return sorted(self.names.ignored - self.seen - self.inside)

    def require_mapped(self) -> None:
        """Raises DataError if data.columns names a column that no row has."""
        for column, name in self.names.new_name.items():
            if column not in self.seen:
                raise no_such_column(column, name, dict.fromkeys(sorted(self.seen)), self.source)


def _line(origin: str) -> tuple[int, str]:
    number = origin.rpartition(":")[2].split()[0] if ":" in origin else ""
    return (int(number) if number.isdigit() else 0, origin)
