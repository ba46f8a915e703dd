"""Report how each column was treated: used, metadata, ignored (data.ignore) or refused.

`ColumnNames` renames the columns of a row. The parser reads the row through a `TrackedRow`, which records the columns
whose values are read, so "used" reflects what the parser did. `ColumnLedger` decides about the other columns.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.column_roles import COMPLETIONS, PROMPTS, SYSTEMS, TEXT_PROMPTS, prompt_column
from preftune.formats.hints import suggests
from preftune.formats.names import (
    CANONICAL,
    ColumnNames,
    columns_setting,
    missing_column_error,
    nested_fields,
    quoted,
    suggest_name,
)
from preftune.formats.origins import Origins
from preftune.formats.parse_sft import is_label
from preftune.formats.tools import FOR_TEMPLATE
from preftune.formats.values import Fields, is_blank, peek
from preftune.types import PreferenceGroup

#: The statuses of a column, as they are printed. If rows differ, the first in this order counts.
STATUS_TEXT = {
    "used": "used",
    "ignored": "ignored",
    "refused": "refused",
    "metadata": "metadata",
    "repeated": "repeated from used columns",
    "dropped": "in dropped rows only",
    "empty": "empty",
}
APPENDED = metadata.CONTEXT - {*SYSTEMS, "history"} | {"text"}  # columns that can be mapped to `input`
CONTEXT = "belongs to the prompt, but this format cannot include it"


class TrackedRow(dict[str, Any]):
    """A row that records which values are read."""

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

    def untracked_items(self) -> Iterator[tuple[str, Any]]:
        """Iterate over names and values without recording them as read."""
        return iter(super().items())


@dataclass(slots=True)
class ColumnLedger:
    """The status of each column of a file, row by row.

    origin_of     {column that preftune made: the column of the file that it was made from}
    seen          all columns of the file, including those of rows that cannot be read
    counts        {column: {status: rows}}; "dropped" counts dropped rows, whose parser may not have read the column
    refused       {column: (why, origins)}
    suggestions   {refused column: the name that it probably means}
    nested        names in data.ignore that are fields of judgements or of OpenAI's `input`
    has_context   whether a row has a system text or a history
    """

    source: str
    format: str
    names: ColumnNames
    origin_of: Mapping[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    refused: dict[str, tuple[str, Origins]] = field(default_factory=dict)
    suggestions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Origins] = field(default_factory=dict)
    has_context: bool = False
    nested: set[str] = field(default_factory=set)
    good_rows: str = ""  # condition for the rows that are not marked as bad
    ratings: list[str] = field(default_factory=list)  # refused columns by which responses could be compared
    _misspelt: dict[str, tuple[str, Origins]] = field(default_factory=dict)  # as `refused`, in dropped rows

    def see(self, raw: Fields) -> None:
        """Note the columns of a row of the file."""
        self.seen.update(self.origin_of.get(column, column) for column in raw)

    def record(self, raw: Fields, row: TrackedRow, groups: list[PreferenceGroup] | None, origin: str) -> list[str]:
        """Record the columns of a row and return the refused ones. `groups` is None for a dropped row."""
        self._record_omitted(raw, row)
        texts: set[str] | None = None
        refused = []
        for name, value in row.untracked_items():
            column = self.origin_of.get(name) or self.names.source(name, raw)
            if name in row.read:
                self._record_used(column, name, value)
            elif groups is None:
                self._record_dropped(column, name, value, row, origin)
            else:
                status, why = self._status_by_name(name, value, row)
                if not status:
                    texts = metadata.texts_of(groups) if texts is None else texts
                    status, why = self._status_by_value(name, value, row, texts, origin)
                self.count(column, status)
                if status == "refused":
                    self.refused.setdefault(column, (why, Origins()))[1].append(origin)
                    refused.append(column)
        return refused

    def _record_omitted(self, raw: Fields, row: TrackedRow) -> None:
        """Record the columns of the file that the renamed row does not have."""
        if self.names.ignored:
            self.nested |= self.names.ignored & nested_fields(raw)
        for column in raw:
            if column in self.names.ignored:
                self.count(column, "ignored")
            elif self.names.new_name.get(column, column) not in row:  # a blank column whose name another one got
                self.count(column, "empty")

    def _record_used(self, column: str, name: str, value: Any) -> None:
        blank = is_blank(value)
        self.count(column, "empty" if blank else "used")
        self.has_context |= not blank and (
            name in SYSTEMS or name.lower() in FOR_TEMPLATE or (name == "history" and not isinstance(value, str))
        )

    def _record_dropped(self, column: str, name: str, value: Any, row: TrackedRow, origin: str) -> None:
        self.count(column, "dropped")
        if name in CANONICAL:
            return
        if suggest_name(name, row) and metadata.texts_in(value) and not metadata.is_metadata(name, row):
            self._misspelt.setdefault(column, (self._not_used(name, row), Origins()))[1].append(origin)

    def count(self, column: str, status: str) -> None:
        """Count one row in which a column has this status."""
        if column not in self.counts:
            self.counts[column] = Counter()
        self.counts[column][status] += 1

    def _status_by_name(self, name: str, value: Any, row: TrackedRow) -> tuple[str, str]:
        """Status of an unread column and why it is refused, or ("", "") if `_status_by_value` must decide."""
        status, why = "", ""
        if is_blank(value):
            status = "empty"
        elif metadata.why_unusable(name):
            status, why = "refused", metadata.why_unusable(name)
        elif self.format == "prompts":  # responses, references and labels do not belong to a prompt
            status = "" if name in metadata.CONTEXT else "metadata"
        elif name in metadata.LABEL_COLUMNS and not (name == "margin" and self.format == "ranked"):
            status, why = "refused", f"has no meaning in the format {self.format!r}"
        elif name in metadata.RATINGS and self.format == "sft-completion":
            why = "rates the response, and a demonstration cannot include a rating"
            status = "refused"
            self.ratings.append(self.names.original(name))
        elif self.format.startswith("sft-") and metadata.marks_bad(name, value):
            good = name.lower() in metadata.FLAGS
            word = isinstance(value, str) and value.strip().lower() in metadata.BAD_WORDS
            condition = f"!= {value.strip()}" if word else "== true" if good else "== false"
            self.good_rows = f"{self.names.original(name)} {condition}"
            if good or (word and is_label(value)):
                self.suggestions[self.names.original(name)] = "label"
            status, why = "refused", "marks the response as bad, and a demonstration must be a good one"
        elif self._describes_row(name, value, row):
            status = "metadata"
        return status, why

    def _describes_row(self, name: str, value: Any, row: TrackedRow) -> bool:
        """Return whether a column only describes its row, according to its name or because it contains no words."""
        if metadata.is_metadata(name, row):
            without_prompt = self.format == "votes" and prompt_column(row) is None
            without_prompt |= self.format == "preference-implicit"
            return not (without_prompt and metadata.can_be_prompt(name, value))
        if name in metadata.CONTEXT or not metadata.is_number(value):
            return not metadata.texts_in(value)
        return not metadata.texts_in(value) or suggest_name(name, row) not in (*TEXT_PROMPTS, "input")

    def _status_by_value(self, name: str, value: Any, row: TrackedRow, texts: set[str], origin: str) -> tuple[str, str]:
        """Status of an unread column and why it is refused, given the `texts` that were read."""
        if metadata.only_repeats(name, value, texts) or self._is_read_inside(name, value, row, texts):
            return "repeated", ""
        if self.format == "ultrafeedback" and name in TEXT_PROMPTS and name == prompt_column(row):
            self._note(f"column {name!r} differs from the prompt in the dialogues, which was used", origin)
            return "metadata", ""
        if name in metadata.CONTEXT:
            return "refused", CONTEXT
        return "refused", self._not_used(name, row)

    def _is_read_inside(self, name: str, value: Any, row: TrackedRow, texts: set[str]) -> bool:
        """Return whether data.columns reads fields of this column, and its other texts are only labels."""
        read = [row[new] for column, new in self.names.nested if column.partition(".")[0] == name and new in row.read]
        others = {text.strip() for text in metadata.texts_in(value)} - texts - set(metadata.texts_in(read))
        return bool(read) and all(len(text.split()) <= metadata.SHORT for text in others)

    def _note(self, text: str, origin: str) -> None:
        self.notes.setdefault(text, Origins()).append(origin)

    def _not_used(self, name: str, row: TrackedRow) -> str:
        suggestion = suggest_name(name, row)
        if self.format.startswith("sft-") and is_label(peek(row, name)):
            suggestion = "label"
        elif self.format in ("sft-messages", "sft-conversations") and name == "rejected":
            suggestion = "rejected_response"
        if not suggestion:
            return "is not used"
        self.suggestions[self.names.original(name)] = suggestion
        return f"is not used (did you mean {suggestion!r}?)"

    def refuses_most_of(self, rows: int) -> bool:
        """Return whether more than half of the rows have a refused column, so that dropping them would leave little."""
        return 2 * len({origin for _, origins in self.refused.values() for origin in origins}) > rows

    def refuse(self, rows: int, nothing_kept: bool = False) -> None:
        """Raise DataError if a column was refused, or if no row was kept and a column name looks misspelt."""
        self.refused = self.refused or (self._misspelt if nothing_kept else {})
        if not self.refused:
            return
        parts = [
            f"column {column!r} {why} ({len(origins)} of {rows} rows)"
            for column, (why, origins) in sorted(self.refused.items(), key=lambda item: -len(item[1][1]))
        ]
        first = min((origins[0] for _, origins in self.refused.values()), key=_line)
        used = ", ".join(repr(column) for column, counts in self.counts.items() if counts["used"])
        raise DataError(
            "; ".join(parts),
            where=first,
            why=f"the rows were read as {self.format!r} from {used or 'no column'}",
            fix=self._fix(),
        )

    def _fix(self) -> str:
        them = "it" if len(self.refused) == 1 else "them"
        if self.ratings:
            compare = f"to compare responses to the same prompt in adjacent rows, set data.aspect={self.ratings[0]}; "
        elif self.good_rows:
            compare = f"to train on the good responses only, set data.where=[{json.dumps(self.good_rows)}]; "
        else:
            compare = ""
        ignore = f"{compare}to train without {them}, set data.ignore=[{', '.join(map(quoted, self.refused))}]"
        mapping: dict[str, str] = {}
        unknown = [column for column, (why, _) in self.refused.items() if why.startswith(("is not used", CONTEXT))]
        has_text_prompt = any(self.counts.get(column, Counter())["used"] for column in TEXT_PROMPTS)
        has_prompt = any(self.counts.get(column, Counter())["used"] for column in (*PROMPTS, "text"))
        if pair := self._other_pair():
            others = [name for name in (*pair, *self.refused) if name not in pair.values()]
            others = [*dict.fromkeys(name for name in others if name in self.counts)]
            rest = f" and data.ignore=[{', '.join(map(quoted, others))}]" if others else ""
            return f"set {columns_setting(pair)}{rest}; {ignore}"
        for column in self.refused:
            if column in self.suggestions:
                mapping.setdefault(self.suggestions[column], column)
            elif column in APPENDED and has_text_prompt and "input" not in self.counts:
                mapping.setdefault("input", column)
            elif column in APPENDED and not has_prompt and self.format in ("votes", "preference-implicit"):
                mapping.setdefault("prompt", column)
        if mapping:
            appended = " (`input` is appended to the prompt)" if "input" in mapping else ""
            return f"set {columns_setting(mapping)}{appended}; {ignore}"
        return f"{ignore}; or map them to known names: data.columns={{prompt: COLUMN, ...}}" if unknown else ignore

    def _other_pair(self) -> dict[str, str]:
        """Return data.columns for a better and a worse response among refused columns, or {} if there is no such pair.

        A demonstration may have its worse response in a column with another name. Whole responses (full_chosen) may
        be next to steps of them (chosen).
        """
        worse = [column for column in self.refused if suggests("rejected", column)]
        better = [column for column in self.refused if suggests("chosen", column)]
        used = [column for column in COMPLETIONS if self.counts.get(column, Counter())["used"]]
        better = better or (used if self.format == "sft-completion" else [])
        return {"chosen": better[0], "rejected": worse[0]} if len(better) == len(worse) == 1 else {}

    def statuses(self) -> dict[str, str]:
        """Return {column: text of its status}, the first in STATUS_TEXT that occurred in any row."""
        texts = {}
        for column in (*self.counts, *sorted(self.seen - self.counts.keys())):
            counts = self.counts.get(column, Counter({"dropped": 1}))
            status = next(status for status in STATUS_TEXT if counts[status])
            new_name = self.names.new_name.get(column)
            texts[column] = f"used as {new_name}" if new_name and status == "used" else STATUS_TEXT[status]
        return texts

    def unread(self) -> list[str]:
        """Columns that occur only in dropped rows and that no format reads."""
        return [c for c, text in self.statuses().items() if text == STATUS_TEXT["dropped"] and c not in CANONICAL]

    def unmatched(self) -> list[str]:
        """Names in data.ignore that no row has."""
        return sorted(self.names.ignored - self.seen - self.nested)

    def require_mapped(self) -> None:
        """Raise DataError if data.columns names a column that no row has."""
        for column, name in self.names.new_name.items():
            if column not in self.seen and column not in self.counts:
                raise missing_column_error(column, name, dict.fromkeys(sorted(self.seen)), self.source)


def _line(origin: str) -> tuple[int, str]:
    number = origin.rpartition(":")[2].split()[0] if ":" in origin else ""
    return (int(number) if number.isdigit() else 0, origin)
