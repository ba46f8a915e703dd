"""Rename and omit the columns of a file, as data.columns and data.ignore say, and suggest names."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.formats import metadata
from preftune.formats.column_roles import (
    COMPLETIONS,
    PAIRS,
    PROMPTS,
    SYSTEMS,
    completion_column,
    pair_columns,
    prompt_column,
)
from preftune.formats.values import BadRow, Fields, as_number, is_blank, is_dialogue, peek
from preftune.sources.rows import Row

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
                "tools",
                *PROMPTS,
                *SYSTEMS,
                *COMPLETIONS,
                *chain.from_iterable(PAIRS),
            ),
        )
    )
)


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The renaming of the columns of a file.

    new_name   {column of the file: preftune's name}, from data.columns
    ignored    columns of the file to omit, from data.ignore
    """

    new_name: Mapping[str, str]
    ignored: frozenset[str]

    @property
    def nested(self) -> list[tuple[str, str]]:
        """The (column, name) of data.columns that may be fields inside a column: fields.prompt, choices.0.text."""
        return [(column, name) for column, name in self.new_name.items() if "." in column]

    def rename(self, raw: Fields) -> Fields:
        """Return a row of the file with preftune's names. Raises BadRow if two columns get the same name."""
        if not (self.new_name or self.ignored):
            return raw
        inner = {name: value for column, name in self.nested if (value := _at(raw, column)) is not None}
        new_names = {self.new_name[column] for column in raw if column in self.new_name} | inner.keys()
        row: Fields = {}
        for column, value in raw.items():
            if column in self.ignored:
                continue
            name = self.new_name.get(column, column)
            if name in new_names and column not in self.new_name:
                if name in inner and any(path.startswith(f"{name}.") for path, new in self.nested if new == name):
                    continue  # chosen: chosen.text
                if not is_blank(value):
                    raise BadRow(
                        f"data.columns gives a different column the name {name!r}, which the row already has",
                        fix=f"omit the old column with data.ignore=[{name}], or map the other one to a different name",
                    )
                continue
            row[name] = value
        row |= inner
        if self.ignored:
            _omit_nested(row, self.ignored)
        return row

    def readable(self, rows: Iterable[Row]) -> list[Fields]:
        """Return the rows that can be read, with preftune's names."""
        readable = []
        for row in rows:
            with suppress(BadRow):  # reported when the row is parsed
                if not row.fault:
                    readable.append(self.rename(row.value))
        return readable

    def source(self, name: str, raw: Fields) -> str:
        """The column of the file from which a row got the column `name`: a row may lack the one in data.columns."""
        column = self.original(name)
        has_column = column in raw or ("." in column and _at(raw, column) is not None)
        return name if name in raw and not has_column else column

    def original(self, name: str) -> str:
        """The name that a column has in the file."""
        return next((column for column, new in self.new_name.items() if new == name), name)


def _at(row: Fields, path: str) -> Any:
    """Return the value of a field inside a column, or None if the row has a column of this name or no such field.

    In a list, a number is an index (-1 is the last item), and `*` means the list of the values in all items.
    """
    return None if path in row else _inside(row, path.split("."))


def _inside(value: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return value
    part, *rest = parts
    if isinstance(value, Mapping):
        return _inside(value.get(part), rest)
    if isinstance(value, list) and part == "*":
        return [item for item in (_inside(each, rest) for each in value) if item is not None] or None
    if isinstance(value, list) and re.fullmatch("-?[0-9]{1,6}", part) and -len(value) <= int(part) < len(value):
        return _inside(value[int(part)], rest)
    return None


def column_names(columns: Mapping[str, str], ignore: Sequence[str]) -> ColumnNames:
    """Return the renaming for data.columns and data.ignore. Raises ConfigError for a name that no format reads."""
    for name in columns:
        if name not in CANONICAL:
            fix = f"{did_you_mean(name, CANONICAL)}; write data.columns={{NAME: COLUMN OF THE FILE}}"
            raise ConfigError(f"unknown name {name!r}", where="data.columns", fix=fix)
    duplicates = [column for column, number in Counter(columns.values()).items() if number > 1]
    if duplicates:
        raise ConfigError(f"column {duplicates[0]!r} has two names", where="data.columns", fix="map each column once")
    return ColumnNames({column: name for name, column in columns.items()}, frozenset(ignore))


def _omit_nested(row: Fields, ignored: frozenset[str]) -> None:
    """Remove ignored fields from the judgements and from OpenAI's `input`."""
    if isinstance(row.get("judgements"), list):
        row["judgements"] = [_without(j, ignored) if isinstance(j, dict) else j for j in row["judgements"]]
    if isinstance(row.get("input"), dict):
        row["input"] = _without(row["input"], ignored)


def nested_fields(raw: Fields) -> set[str]:
    """Fields of a row's judgements and of OpenAI's `input`, which data.ignore can also name."""
    judgements = raw.get("judgements")
    items = [raw.get("input"), *(judgements if isinstance(judgements, list) else [])]
    return {key for item in items if isinstance(item, dict) for key in item}


def _without(fields: Fields, ignored: frozenset[str]) -> Fields:
    return {key: value for key, value in fields.items() if key not in ignored}


def missing_column_error(column: str, name: str, columns: Mapping[str, Any], source: str) -> DataError:
    """Return the error for data.columns={name: column} if no row has that column."""
    fix = f"{did_you_mean(column, columns)}; write data.columns={{NAME: COLUMN OF THE FILE}}"
    return DataError(f"data.columns reads {name!r} from {column!r}, which no row has", where=source, fix=fix)


PROMPT_WORDS = frozenset(
    {"prompt", "promt", "question", "instruction", "query", "user", "request", "problem", "post", "ask", "human"}
)
NUMBERS = frozenset({"weight", "probability", "margin", "score_chosen", "score_rejected"})
#: Names of responses, labels and scores, which are not suggested for a row that already has its responses.
ANSWERS = frozenset(
    {"responses", "completions", "answers", "outputs", "scores", "ranks", "rewards", "judgements", "label", "labels"}
    | {"response_a", "response_b", "winner", "rejected_messages", *COMPLETIONS}
    | {*chain.from_iterable(PAIRS)}
)


def suggest_name(column: str, row: Fields) -> str:
    """Suggest a name that `column` may be a misspelling of and that the row lacks, or return ""."""
    candidates = [name for name in CANONICAL if name not in row]
    if is_blank(peek(row, prompt_column(row) or "")):
        if (PROMPT_WORDS | metadata.POSSIBLE_PROMPTS) & set(words_in(column)) or is_dialogue(peek(row, column)):
            return "prompt"
    else:
        candidates = [name for name in candidates if name not in PROMPTS or name == "input"]
    if pair_columns(row) or completion_column(row) or "winner" in row:
        candidates = [name for name in candidates if name not in ANSWERS]
    if as_number(peek(row, column)) is None:
        candidates = [name for name in candidates if name not in NUMBERS]
    return _closest(column.strip().lower(), tuple(candidates))


@lru_cache(maxsize=4096)
def _closest(column: str, candidates: tuple[str, ...]) -> str:
    return next(iter(difflib.get_close_matches(column, candidates, n=1, cutoff=0.75)), "")


def words_in(name: str) -> list[str]:
    """Split a column name into words: answer_a and answerA give answer and a."""
    return re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def quoted(column: str) -> str:
    """Quote a column name for use in a setting, if necessary."""
    return column if re.fullmatch(r"[\w.-]+", column) else json.dumps(column, ensure_ascii=False)


def columns_setting(mapping: Mapping[str, str]) -> str:
    """Write the setting data.columns for this mapping."""
    return f"data.columns={{{', '.join(f'{name}: {quoted(column)}' for name, column in mapping.items())}}}"
