"""The message for rows that no format fits: what is lacking, and the data.columns to write."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.names import ASKING, parts_of, setting
from preftune.formats.parse_votes import sides_of, verdict_column
from preftune.formats.slots import completion_column, pair_columns, prompt_column
from preftune.formats.values import Fields, is_dialogue

#: Words in column names that suggest a meaning.
HINTS = {
    "prompt": ASKING,
    "chosen": {
        *("chosen", "choosen", "good", "better", "best", "preferred", "win", "winner", "accepted", "positive", "pos"),
        *("safe", "winning"),
    },
    "rejected": {
        *("rejected", "reject", "bad", "worse", "worst", "dispreferred", "lose", "loser", "negative", "neg"),
        *("unsafe", "losing"),
    },
    "completion": {"completion", "response", "answer", "solution", "reply", "summary", "assistant", "target", "output"},
}
MANY = {"responses", "generations", "completions", "answers", "outputs", "candidates"}
ORDINALS = (("left", "right"), ("first", "second"))
VOTES = {
    "winner",
    "win",
    "better",
    "preferred",
    "preference",
    "pref",
    "choice",
    "verdict",
    "vote",
    "judgement",
    "label",
}


def unknown_columns(
    rows: Sequence[Fields], formats: Mapping[str, tuple[tuple[str, ...], str]], where: str
) -> DataError:
    """The error for rows that no format fits; `formats` holds the columns and an example row of each format."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    what = f"no known format has the columns {sorted(found)}"
    mapping = _mapping(rows)
    if found and not mapping and all(_is_prompt_alone(row) for row in rows):
        return DataError(
            "the rows have a prompt and no response",
            where=where,
            why=f"the columns are {', '.join(map(repr, found))}",
            fix="sample responses first: preftune sample --prompts FILE, then preftune pairs; "
            "or name the columns of the responses: data.columns={chosen: COLUMN, rejected: COLUMN}",
        )
    if mapping:
        return DataError(what, where=where, why=_lacking(formats, found), fix=f"set {setting(mapping)}")
    if rows and sides_of(rows[0]):
        fix = "name the column that says which response is better: data.columns={winner: COLUMN}"
        return DataError(what, where=where, why=_lacking(formats, found), fix=fix)
    nearest = sorted(formats, key=lambda name: -_likeness(formats[name][0], found))[:3]
    return DataError(
        what,
        where=where,
        why=_lacking(formats, found),
        fix="; ".join(
            [
                "name the meaning of the columns, for instance data.columns={prompt: COLUMN, chosen: COLUMN, rejected: "
                "COLUMN} or {prompt: COLUMN, response_a: COLUMN, response_b: COLUMN, winner: COLUMN}",
                *(f"{name}: {formats[name][1]}" for name in nearest),
                "or set data.format=my_format.py:function",
            ]
        ),
    )


def _lacking(formats: Mapping[str, tuple[tuple[str, ...], str]], found: Sequence[str]) -> str:
    nearest = max(formats, key=lambda name: _likeness(formats[name][0], found))
    if _likeness(formats[nearest][0], found) < 0.1:  # nothing in common
        return ""
    lacking = [column for column in formats[nearest][0] if column not in found]
    hints = [f"{c!r}{f' (did you mean {near(c, found)!r}?)' if near(c, found) else ''}" for c in lacking]
    return f"the nearest, {nearest!r}, also needs {', '.join(hints)}" if hints else ""


def _is_prompt_alone(row: Fields) -> bool:
    prompt = prompt_column(row)
    rest = [key for key in row if key not in (prompt, "system", "history", "input")]
    return prompt is not None and not any(_is_text(row[key]) and not metadata.is_metadata(key, row) for key in rest)


def _is_text(value: Any) -> bool:
    return bool(metadata.texts_in(value))


def _mapping(rows: Sequence[Fields]) -> dict[str, str]:
    """The data.columns that names and values suggest: for pairs, votes or rankings; {} if nothing fits."""
    row = rows[0] if rows else {}
    ranked = _ranking(row)
    if ranked:
        return ranked
    texts = [k for k, v in row.items() if (isinstance(v, str) or is_dialogue(v)) and not metadata.is_metadata(k, row)]
    votes = _votes(row, texts)
    if votes:
        return votes
    pair = _hinted(row, texts, ("chosen", "rejected", "prompt"))
    if {"chosen", "rejected"} <= {*pair, *row}:
        return pair
    single = _hinted(row, texts, ("completion", "prompt"))
    both = ("completion" in single or completion_column(row)) and ("prompt" in single or prompt_column(row))
    return single if both and len(texts) == 2 else {}


def _hinted(row: Fields, texts: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """The columns whose names suggest the wanted meanings, each where exactly one does."""
    mapping: dict[str, str] = {}
    asked = prompt_column(row)
    for name in wanted:
        if name in row or (name == "prompt" and asked) or (name != "prompt" and pair_columns(row)):
            continue
        free = [key for key in texts if key not in mapping.values() and key != asked]
        hinted = [key for key in free if near(name, [key]) or HINTS[name] & set(parts_of(key))]
        if len(hinted) == 1:
            mapping[name] = hinted[0]
    return mapping


def _ranking(row: Fields) -> dict[str, str]:
    lists = {k: v for k, v in row.items() if isinstance(v, list) and len(v) > 1}
    texts = [k for k, v in lists.items() if all(isinstance(item, str) for item in v)]
    texts = [k for k in texts if MANY & set(parts_of(k))] or texts
    grades = [k for k, v in lists.items() if all(isinstance(n, int | float) and not isinstance(n, bool) for n in v)]
    if len(texts) != 1 or len(grades) != 1 or len(lists[texts[0]]) != len(lists[grades[0]]):
        return {}
    ranks = bool({"rank", "ranks", "ranking", "order"} & set(parts_of(grades[0])))
    mapping = {"responses": texts[0], "ranks" if ranks else "scores": grades[0]}
    if prompt_column(row) is None:
        free = [k for k, v in row.items() if isinstance(v, str) and not metadata.is_metadata(k, row)]
        if len(free) != 1:
            return {}
        mapping = {"prompt": free[0], **mapping}
    return {name: column for name, column in mapping.items() if name != column}


def _votes(row: Fields, texts: Sequence[str]) -> dict[str, str]:
    """Two columns whose names differ in their last letter or digit only, and one that sounds like a verdict."""
    sides = [
        (a, b)
        for a in texts
        for b in texts
        if (a[:-1] == b[:-1] and a[-1:].lower() + b[-1:].lower() in ("ab", "12", "01", "xy"))
        or any(first in parts_of(a) and a.replace(first, second) == b for first, second in ORDINALS)
    ]
    said = verdict_column(row) or next((key for key in row if VOTES & set(parts_of(key))), None)
    if len(sides) != 1 or said is None or said in sides[0]:
        return {}
    mapping = {"response_a": sides[0][0], "response_b": sides[0][1], "winner": said}
    if prompt_column(row) is None:
        free = [key for key in texts if key not in mapping.values()]
        if len(free) != 1:
            return {}
        mapping = {"prompt": free[0], **mapping}
    return {name: column for name, column in mapping.items() if name != column}


def _likeness(columns: Sequence[str], found: Sequence[str]) -> float:
    close = [column in found or bool(near(column, found)) for column in columns]
    return sum(close) / len(close) + 0.01 * len(close)


def near(column: str, found: Sequence[str]) -> str:
    """A column whose name is `column` misspelt, or ""."""
    return next(iter(difflib.get_close_matches(column, sorted(found), n=1, cutoff=0.75)), "")
