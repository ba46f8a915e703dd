"""What became of each column: used, known as metadata, named in data.ignore, or refused.

A row is first brought under preftune's names (`Names`); the parser then reads it through a `Tracked` row, which notes
the columns whose values were read. So "used" is what the parser really did. The `Ledger` decides about the others.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.data import metadata
from preftune.data.slots import COMPLETIONS, DIALOGUES, PAIRS, PROMPTS, SYSTEMS
from preftune.data.values import BadRow, Fields, has_role, is_dialogue
from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.types import PreferenceGroup

#: Names that data.columns can map to: those that the formats read.
CANONICAL = tuple(
    dict.fromkeys(
        (
            *("prompt", "chosen", "rejected", "completion", "label", "response_a", "response_b", "winner", "responses"),
            *("scores", "ranks", "judgements", "labels", "system", "history", "input", "messages", "conversations"),
            *("text", "weight", "probability", "margin", "score_chosen", "score_rejected", "ended", "completions"),
            *("answers", "outputs", "rewards", "rejected_response", "rejected_messages", "preferred_output"),
            *(
                "non_preferred_output",
                "kto_tag",
                *PROMPTS,
                *SYSTEMS,
                *COMPLETIONS,
                *(side for p in PAIRS for side in p),
            ),
        )
    )
)
#: Columns that may hold messages, and so may hold them as JSON text; and those that hold a list in every format.
MAYBE_CHAT = frozenset(
    {"prompt", "context", "completion", "history", "response_a", "response_b", "conversation_a", "conversation_b"}
    | {"preferred_output", "non_preferred_output", "rejected_response", "rejected_messages", *DIALOGUES}
    | {side for pair in PAIRS for side in pair}
)
ALWAYS_LISTS = frozenset(
    {"responses", "completions", "answers", "outputs", "scores", "ranks", "rewards", "judgements", "labels", "ended"}
)


@dataclass(frozen=True, slots=True)
class Names:
    """How the rows of a file get preftune's names.

    new_name   {column of the file: preftune's name}, from data.columns
    ignored    columns of the file to leave out, from data.ignore
    as_json    columns, under preftune's names, that hold messages or lists as JSON text
    """

    new_name: Mapping[str, str]
    ignored: frozenset[str]
    as_json: frozenset[str] = frozenset()

    def row(self, raw: Fields) -> Fields:
        """A row of the file under preftune's names. Raises BadRow where two columns want the same name."""
        if not (self.new_name or self.ignored or self.as_json):
            return raw
        row: Fields = {}
        for column, value in raw.items():
            if column in self.ignored:
                continue
            name = self.new_name.get(column, column)
            if column not in self.new_name and name in self.new_name.values():
                if not metadata.is_blank(value):
                    raise BadRow(
                        f"data.columns gives another column the name {name!r}, which the row has already",
                        fix=f"leave it out with data.ignore=[{name}], or map it to another name",
                    )
                continue
            row[name] = _decoded(value, name) if name in self.as_json and isinstance(value, str) else value
        if self.ignored:
            _ignore_inside(row, self.ignored)
        return row

    def of_file(self, name: str) -> str:
        """The file's own name of a column."""
        return next((column for column, new in self.new_name.items() if new == name), name)


def names_of(columns: Mapping[str, str], ignore: Sequence[str], head: Sequence[Fields]) -> Names:
    """The names for a file whose first rows are `head`. Raises ConfigError for a name that no format reads."""
    for name in columns:
        if name not in CANONICAL:
            fix = f"{did_you_mean(name, CANONICAL)} The order is {{preftune's name: column of the file}}"
            raise ConfigError(f"unknown name {name!r}", where="data.columns", fix=fix)
    twice = [column for column, number in Counter(columns.values()).items() if number > 1]
    if twice:
        raise ConfigError(f"column {twice[0]!r} has two names", where="data.columns", fix="map each column once")
    plain = Names({column: name for name, column in columns.items()}, frozenset(ignore))
    rows = []
    for raw in head:
        try:
            rows.append(plain.row(raw))
        except BadRow:  # it is reported when the row is read
            continue
    candidates = {name for row in rows for name in row if name in MAYBE_CHAT or name in ALWAYS_LISTS}
    as_json = frozenset(name for name in candidates if _holds_json(name, [row.get(name) for row in rows]))
    return Names(plain.new_name, plain.ignored, as_json)


def _holds_json(name: str, values: Sequence[Any]) -> bool:
    """Whether all texts of a column are JSON: of messages, or of a list where no format takes a text."""
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    if not texts or not all(text.strip()[0] in "[{" for text in texts):
        return False
    try:
        found = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return False
    if name in ALWAYS_LISTS or name == "history":
        return all(isinstance(value, list) for value in found)
    return all(is_dialogue(value) or has_role(value) for value in found)


def _decoded(text: str, name: str) -> Any:
    if not text.strip():
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"column {name!r} holds JSON text in the first rows, and here text that is not: {error}") from None


def _ignore_inside(row: Fields, ignored: frozenset[str]) -> None:
    """Leave the fields of these names out of the judgements and of OpenAI's `input` too."""
    if isinstance(row.get("judgements"), list):
        row["judgements"] = [_without(j, ignored) if isinstance(j, dict) else j for j in row["judgements"]]
    if isinstance(row.get("input"), dict):
        row["input"] = _without(row["input"], ignored)


def _without(fields: Fields, ignored: frozenset[str]) -> Fields:
    return {key: value for key, value in fields.items() if key not in ignored}


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

    became    {column: {"used" | "metadata" | "repeated" | "empty" | "ignored" | "refused" | "dropped": rows};
              "dropped" counts rows without anything to learn, whose parser may have stopped before it read the column
    refused   {column: (why, where it was met)}
    """

    source: str
    format: str
    names: Names
    became: dict[str, Counter[str]] = field(default_factory=dict)
    refused: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    in_context: bool = False
    _suspects: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # misspelt names in dropped rows

    def file(self, raw: Fields, row: Tracked, groups: list[PreferenceGroup] | None, origin: str) -> list[str]:
        """Enter a row that was read and return the columns that are refused. `groups` is None for a dropped row."""
        for column in raw:
            if column in self.names.ignored:
                self._enter(column, "ignored")
            elif self.names.new_name.get(column, column) not in row:  # blank, and its name is given to another column
                self._enter(column, "empty")
        said: set[str] | None = None
        refused = []
        for name, value in row.quietly():
            column = self.names.of_file(name)
            if name in row.read:
                self._enter(column, "empty" if metadata.is_blank(value) else "used")
                self.in_context |= name in (*SYSTEMS, "history") and not metadata.is_blank(value)
                continue
            if groups is None:
                self._enter(column, "dropped")
                if near_name(name, row) and metadata.texts_in(value) and not metadata.is_metadata(name, row):
                    self._suspects.setdefault(column, (_not_used(name, row), []))[1].append(origin)
                continue
            status, why = self._quick(name, value, row)
            if not status:
                said = metadata.said_in(groups) if said is None else said
                status, why = self._compared(name, value, row, said, origin)
            self._enter(column, status)
            if status == "refused":
                self.refused.setdefault(column, (why, []))[1].append(origin)
                refused.append(column)
        return refused

    def _enter(self, column: str, status: str) -> None:
        self.became.setdefault(column, Counter())[status] += 1

    def _quick(self, name: str, value: Any, row: Tracked) -> tuple[str, str]:
        """What a column is that was not read, by its name and the kind of its value; "" if it must be compared."""
        status, why = "", ""
        if metadata.is_blank(value):
            status = "empty"
        elif name in metadata.UNUSABLE:
            status, why = "refused", metadata.UNUSABLE[name]
        elif self.format == "prompts":  # answers, references and labels of a prompt are not part of it
            status = "" if name in metadata.CONTEXT else "metadata"
        elif name in metadata.GRADES and not (name == "margin" and self.format == "ranked"):
            status, why = "refused", f"has no meaning in the format {self.format!r}"
        elif name in metadata.RATINGS and self.format == "sft-completion":
            status, why = "refused", "says how good the response is, and a demonstration has no place for that"
        elif metadata.is_metadata(name, row) or not metadata.texts_in(value):
            status = "metadata"
        return status, why

    def _compared(self, name: str, value: Any, row: Tracked, said: set[str], origin: str) -> tuple[str, str]:
        if metadata.repeats(name, value, said):
            return "repeated", ""
        if self.format == "ultrafeedback" and name in PROMPTS:
            self.notes.append((f"column {name!r} differs from the prompt in the dialogues, which was used", origin))
            return "metadata", ""
        if name in metadata.CONTEXT:
            return "refused", CONTEXT
        return "refused", _not_used(name, row)

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
        leave = f"leave out what is not needed with data.ignore=[{', '.join(self.refused)}]"
        mapping: dict[str, str] = {}
        unknown = [column for column, (why, _) in self.refused.items() if why.startswith(("is not used", CONTEXT))]
        for column in unknown:
            near = near_name(column, self.became)
            if near:
                mapping.setdefault(near, column)
            elif column in metadata.CONTEXT and "input" not in self.became:
                mapping.setdefault("input", column)  # appended to the prompt
        if mapping:
            wanted = ", ".join(f"{name}: {column}" for name, column in mapping.items())
            return f"set data.columns={{{wanted}}}, or {leave}"
        return f"{leave}, or name what they are: data.columns={{prompt: COLUMN, ...}}" if unknown else leave

    def _list(self, status: str) -> str:
        return ", ".join(repr(column) for column, counts in self.became.items() if counts[status])

    def table(self) -> dict[str, str]:
        """What became of each column, in words: the first of these that happened to it in any row."""
        words = {}
        for column, counts in self.became.items():
            order = ("used", "ignored", "refused", "metadata", "repeated", "dropped", "empty")
            fate = next(status for status in order if counts[status])
            new = self.names.new_name.get(column)
            words[column] = f"used as {new}" if new and fate == "used" else FATES[fate]
        return words

    def require_mapped(self) -> None:
        """Raises DataError if data.columns names a column that no row has."""
        for column, name in self.names.new_name.items():
            if column not in self.became:
                raise no_such_column(column, name, self.became, self.source)


def no_such_column(column: str, name: str, columns: Mapping[str, Any], source: str) -> DataError:
    """The error for data.columns={name: column} where no row has that column."""
    fix = f"{did_you_mean(column, columns)} The order is {{preftune's name: column of the file}}"
    return DataError(f"data.columns reads {name!r} from {column!r}, and no row has it", where=source, fix=fix)


def near_name(column: str, row: Mapping[str, Any]) -> str:
    """A name that a format reads, that the row does not have, and that `column` may be a misspelling of; or ""."""
    wanted = [name for name in CANONICAL if name not in row]
    return next(iter(difflib.get_close_matches(column.lower(), wanted, n=1, cutoff=0.75)), "")


def _not_used(name: str, row: Mapping[str, Any]) -> str:
    near = near_name(name, row)
    return f"is not used (did you mean {near!r}?)" if near else "is not used"


def _line(origin: str) -> tuple[int, str]:
    number = origin.rpartition(":")[2].split()[0] if ":" in origin else ""
    return (int(number) if number.isdigit() else 0, origin)
