"""How the rows of a file get preftune's names: data.columns, data.ignore, and messages that are stored as JSON text."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data import metadata
from preftune.data.slots import COMPLETIONS, DIALOGUES, PAIRS, PROMPTS, SYSTEMS
from preftune.data.values import BadRow, Fields, has_role, is_dialogue
from preftune.errors import ConfigError, DataError, did_you_mean

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
        given = {self.new_name[column] for column in raw if column in self.new_name}
        row: Fields = {}
        for column, value in raw.items():
            if column in self.ignored:
                continue
            name = self.new_name.get(column, column)
            if name in given and column not in self.new_name:
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
    if name in ALWAYS_LISTS or name == "history":
        return bool(texts) and all(isinstance(_literal(text), list) for text in texts)
    return bool(texts) and all(holds_messages(text) for text in texts)


MESSAGES = re.compile(r"""\s*(\[\s*)?\{.*?['"](role|from|speaker)['"]\s*:""", re.DOTALL)


def holds_messages(text: str) -> bool:
    """Whether a text looks like messages written as JSON, or as Python writes them."""
    if not text.lstrip().startswith(("[", "{")) or not MESSAGES.match(text):
        return False
    value = _literal(text)
    return value is None or is_dialogue(value) or has_role(value)


def _literal(text: str) -> Any:
    """The value of a JSON text, or of a text that Python wrote; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _decoded(text: str, name: str) -> Any:
    if not text.strip():
        return text
    value = _literal(text)
    if not isinstance(value, list | dict):
        raise BadRow(
            f"column {name!r} holds messages or lists as text, and this text is not JSON",
            fix="write the data as JSONL with lists and objects, not with their text",
        )
    return value


def _ignore_inside(row: Fields, ignored: frozenset[str]) -> None:
    """Leave the fields of these names out of the judgements and of OpenAI's `input` too."""
    if isinstance(row.get("judgements"), list):
        row["judgements"] = [_without(j, ignored) if isinstance(j, dict) else j for j in row["judgements"]]
    if isinstance(row.get("input"), dict):
        row["input"] = _without(row["input"], ignored)


def fields_inside(raw: Fields) -> set[str]:
    """The fields of a row's judgements and of OpenAI's `input`, which data.ignore may name too."""
    judgements = raw.get("judgements")
    items = [raw.get("input"), *(judgements if isinstance(judgements, list) else [])]
    return {key for item in items if isinstance(item, dict) for key in item}


def _without(fields: Fields, ignored: frozenset[str]) -> Fields:
    return {key: value for key, value in fields.items() if key not in ignored}


def no_such_column(column: str, name: str, columns: Mapping[str, Any], source: str) -> DataError:
    """The error for data.columns={name: column} where no row has that column."""
    fix = f"{did_you_mean(column, columns)} The order is {{preftune's name: column of the file}}"
    return DataError(f"data.columns reads {name!r} from {column!r}, and no row has it", where=source, fix=fix)


def near_name(column: str, row: Mapping[str, Any]) -> str:
    """A name that a format reads, that the row does not have, and that `column` may be a misspelling of; or ""."""
    wanted = [name for name in CANONICAL if name not in row]
    return next(iter(difflib.get_close_matches(column.lower(), wanted, n=1, cutoff=0.75)), "")
