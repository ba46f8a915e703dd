"""How the rows of a file get preftune's names: data.columns and data.ignore."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.formats import metadata
from preftune.formats.slots import (
    COMPLETIONS,
    PAIRS,
    PROMPTS,
    SYSTEMS,
    completion_column,
    pair_columns,
    prompt_column,
)
from preftune.formats.values import BadRow, Fields, as_number, is_blank, is_dialogue, peek

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


@dataclass(frozen=True, slots=True)
class Names:
    """How the rows of a file get preftune's names.

    new_name   {column of the file: preftune's name}, from data.columns
    ignored    columns of the file to leave out, from data.ignore
    """

    new_name: Mapping[str, str]
    ignored: frozenset[str]

    def row(self, raw: Fields) -> Fields:
        """A row of the file under preftune's names. Raises BadRow where two columns want the same name."""
        if not (self.new_name or self.ignored):
            return raw
        given = {self.new_name[column] for column in raw if column in self.new_name}
        row: Fields = {}
        for column, value in raw.items():
            if column in self.ignored:
                continue
            name = self.new_name.get(column, column)
            if name in given and column not in self.new_name:
                if not is_blank(value):
                    raise BadRow(
                        f"data.columns gives another column the name {name!r}, which the row has already",
                        fix=f"leave it out with data.ignore=[{name}], or map it to another name",
                    )
                continue
            row[name] = value
        if self.ignored:
            _ignore_inside(row, self.ignored)
        return row

    def of_file(self, name: str) -> str:
        """The file's own name of a column."""
        return next((column for column, new in self.new_name.items() if new == name), name)


def names_of(columns: Mapping[str, str], ignore: Sequence[str]) -> Names:
    """The names that data.columns and data.ignore give. Raises ConfigError for a name that no format reads."""
    for name in columns:
        if name not in CANONICAL:
            fix = f"{did_you_mean(name, CANONICAL)}; write data.columns={{NAME OF PREFTUNE: COLUMN OF THE FILE}}"
            raise ConfigError(f"unknown name {name!r}", where="data.columns", fix=fix)
    twice = [column for column, number in Counter(columns.values()).items() if number > 1]
    if twice:
        raise ConfigError(f"column {twice[0]!r} has two names", where="data.columns", fix="map each column once")
    return Names({column: name for name, column in columns.items()}, frozenset(ignore))


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
    fix = f"{did_you_mean(column, columns)}; write data.columns={{NAME OF PREFTUNE: COLUMN OF THE FILE}}"
    return DataError(f"data.columns reads {name!r} from {column!r}, and no row has it", where=source, fix=fix)


ASKING = frozenset(
    {"prompt", "promt", "question", "instruction", "query", "user", "request", "problem", "post", "ask", "human"}
)
NUMBERS = frozenset({"weight", "probability", "margin", "score_chosen", "score_rejected"})
#: Names of responses and of what is said about them: a row that has its responses needs no other one of these.
ANSWERS = frozenset(
    {"responses", "completions", "answers", "outputs", "scores", "ranks", "rewards", "judgements", "label", "labels"}
    | {"response_a", "response_b", "winner", "rejected_messages", *COMPLETIONS}
    | {side for pair in PAIRS for side in pair}
)


def near_name(column: str, row: Fields) -> str:
    """A name that the formats read, that would be of use in the row, and that `column` may stand for; or ""."""
    wanted = [name for name in CANONICAL if name not in row]
    if is_blank(peek(row, prompt_column(row) or "")):
        if (ASKING | metadata.ASKS) & set(parts_of(column)) or is_dialogue(peek(row, column)):
            return "prompt"
    else:
        wanted = [name for name in wanted if name not in PROMPTS or name == "input"]
    if pair_columns(row) or completion_column(row) or "winner" in row:
        wanted = [name for name in wanted if name not in ANSWERS]
    if as_number(peek(row, column)) is None:
        wanted = [name for name in wanted if name not in NUMBERS]
    return _closest(column.strip().lower(), tuple(wanted))


@lru_cache(maxsize=4096)
def _closest(column: str, wanted: tuple[str, ...]) -> str:
    return next(iter(difflib.get_close_matches(column, wanted, n=1, cutoff=0.75)), "")


def parts_of(name: str) -> list[str]:
    """The words of a column's name: answer_a and answerA have the words answer and a."""
    return re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def quoted(column: str) -> str:
    """A column's name as it is typed in a setting."""
    return column if re.fullmatch(r"[\w.-]+", column) else json.dumps(column, ensure_ascii=False)


def setting(mapping: Mapping[str, str]) -> str:
    """The data.columns to type."""
    return f"data.columns={{{', '.join(f'{name}: {quoted(column)}' for name, column in mapping.items())}}}"
