"""Build the error for rows that match no format: the missing columns and a suggested data.columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.column_roles import completion_column, pair_columns, prompt_column
from preftune.formats.names import PROMPT_WORDS, columns_setting, words_in
from preftune.formats.parse_votes import response_columns, verdict_column
from preftune.formats.parsers import RATINGS, SCORES, TEXT_FIELDS
from preftune.formats.values import Fields, is_dialogue

#: Words in column names that suggest the meaning of a column.
HINTS = {
    "prompt": PROMPT_WORDS,
    "chosen": {
        *("chosen", "choosen", "good", "better", "best", "preferred", "win", "winner", "accepted", "positive", "pos"),
        *("safe", "winning"),
    },
    "rejected": {
        *("rejected", "reject", "bad", "worse", "worst", "dispreferred", "lose", "loser", "negative", "neg"),
        *("unsafe", "losing", "other", "alternative"),
    },
    "completion": {"completion", "response", "answer", "solution", "reply", "summary", "assistant", "target", "output"},
}
RESPONSE_LISTS = {"responses", "generations", "completions", "answers", "outputs", "candidates"}
ORDINALS = (("left", "right"), ("first", "second"))
VOTES = {
    *("winner", "win", "better", "preferred", "preference", "pref", "choice", "verdict", "vote", "judgement", "label"),
}


def unknown_columns_error(
    rows: Sequence[Fields], formats: Mapping[str, tuple[tuple[str, ...], str]], where: str
) -> DataError:
    """Return the error for rows that match no format. `formats` has the columns and an example row of each format."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    what = f"no known format has the columns {sorted(columns)}"
    mapping = _suggest_mapping(rows)
    if columns and not mapping and all(_has_only_prompt(row) for row in rows):
        return DataError(
            "the rows have a prompt but no response",
            where=where,
            why=f"the columns are {', '.join(map(repr, columns))}",
            fix="sample responses first with preftune sample --prompts FILE, then run preftune pairs; "
            "or map the columns of the responses: data.columns={chosen: COLUMN, rejected: COLUMN}",
        )
    why = _missing_columns(formats, columns)
    if mapping:
        return DataError(what, where=where, why=why, fix=f"set {columns_setting(mapping)}")
    if rows and response_columns(rows[0]):
        fix = "map the column that says which response is better: data.columns={winner: COLUMN}"
        return DataError(what, where=where, why=why, fix=fix)
    closest = sorted(formats, key=lambda name: -_similarity(formats[name][0], columns))[:3]
    fixes = [
        "map the columns, for example data.columns={prompt: COLUMN, chosen: COLUMN, rejected: COLUMN} or "
        "{prompt: COLUMN, response_a: COLUMN, response_b: COLUMN, winner: COLUMN}",
        *(f"{name}: {formats[name][1]}" for name in closest),
        "or set data.format=my_format.py:function",
    ]
    return DataError(what, where=where, why=why, fix="; ".join(fixes))


def _missing_columns(formats: Mapping[str, tuple[tuple[str, ...], str]], columns: Sequence[str]) -> str:
    """Return a text with the most similar format and the columns that it also needs, or ""."""
    # a format whose columns are all there was tried, and its values did not fit
    tried = {name for name, (needed, _) in formats.items() if set(needed) <= set(columns)}
    closest = max(formats.keys() - tried, key=lambda name: (_similarity(formats[name][0], columns), name))
    if _similarity(formats[closest][0], columns) < 0.1:  # nothing in common
        return ""
    missing = [column for column in formats[closest][0] if column not in columns]
    hints = [f"{c!r}{f' (did you mean {similar(c, columns)!r}?)' if similar(c, columns) else ''}" for c in missing]
    return f"the most similar format, {closest!r}, also needs {', '.join(hints)}" if hints else ""


def _has_only_prompt(row: Fields) -> bool:
    prompt = prompt_column(row)
    texts = [key for key in row if metadata.texts_in(row[key]) and not metadata.is_metadata(key, row)]
    return prompt is not None and {prompt, "system", "history", "input"}.issuperset(texts)


def _suggest_mapping(rows: Sequence[Fields]) -> dict[str, str]:
    """Suggest data.columns from names and values, for pairs, votes, rankings or demonstrations; {} if unclear."""
    row = rows[0] if rows else {}
    ranking = _suggest_ranking(row)
    if ranking:
        return ranking
    texts = [
        k
        for k, v in row.items()
        if (isinstance(v, str) or is_dialogue(v) or (isinstance(v, list) and v and all(isinstance(t, str) for t in v)))
        and not metadata.is_metadata(k, row)
        and k not in metadata.LABEL_COLUMNS
    ]
    votes = _suggest_votes(row, texts)
    if votes:
        return votes
    pair = _suggest_by_words(row, texts, ("chosen", "rejected", "prompt"))
    if {"chosen", "rejected"} <= {*pair, *row}:
        rest = [key for key in texts if key not in (*pair.values(), "chosen", "rejected")]
        needs_prompt = "prompt" not in pair and prompt_column(row) is None and len(rest) == 1
        return pair | ({"prompt": rest[0]} if needs_prompt else {})
    single = _suggest_by_words(row, texts, ("completion", "prompt"))
    both = ("completion" in single or completion_column(row)) and ("prompt" in single or prompt_column(row))
    return single if both and len(texts) == 2 else {}


def _suggest_by_words(row: Fields, texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Map each of `names` to the column whose name suggests it, if there is exactly one."""
    mapping: dict[str, str] = {}
    prompt = prompt_column(row)
    for name in names:
        if name in row or (name == "prompt" and prompt) or (name != "prompt" and pair_columns(row)):
            continue
        free = [key for key in texts if key not in mapping.values() and key != prompt]
        matches = [key for key in free if similar(name, [key]) or HINTS[name] & set(words_in(key))]
        if len(matches) == 1:
            mapping[name] = matches[0]
    return mapping


def _suggest_ranking(row: Fields) -> dict[str, str]:
    """Suggest a list of responses and a list of numbers of the same length."""
    lists = {k: v for k, v in row.items() if isinstance(v, list) and len(v) > 1}
    scored = [k for k, v in lists.items() if all(_is_scored(item) for item in v)]
    if len(scored) == 1 and prompt_column(row):
        return {"responses": scored[0]}
    texts = [k for k, v in lists.items() if all(isinstance(item, str) for item in v)]
    texts = [k for k in texts if RESPONSE_LISTS & set(words_in(k))] or texts
    grades = [k for k, v in lists.items() if all(isinstance(n, int | float) and not isinstance(n, bool) for n in v)]
    if len(texts) != 1 or len(grades) != 1 or len(lists[texts[0]]) != len(lists[grades[0]]):
        return {}
    ranks = bool({"rank", "ranks", "ranking", "order"} & set(words_in(grades[0])))
    mapping = {"responses": texts[0], "ranks" if ranks else "scores": grades[0]}
    if prompt_column(row) is None:
        free = [k for k, v in row.items() if isinstance(v, str) and not metadata.is_metadata(k, row)]
        if len(free) != 1:
            return {}
        mapping = {"prompt": free[0], **mapping}
    return {name: column for name, column in mapping.items() if name != column}


def _is_scored(item: object) -> bool:
    """Return whether an item of a list is a response with a score or a rank."""
    fields = item if isinstance(item, dict) else {}
    return any(key in fields for key in TEXT_FIELDS) and any(key in fields for key in ("rank", *SCORES, *RATINGS))


def _suggest_votes(row: Fields, texts: Sequence[str]) -> dict[str, str]:
    """Suggest two columns whose names differ only in the last character or in an ordinal, and a verdict column."""
    sides = [
        (a, b)
        for a in texts
        for b in texts
        if (a[:-1] == b[:-1] and a[-1:].lower() + b[-1:].lower() in ("ab", "12", "01", "xy"))
        or any(first in words_in(a) and a.replace(first, second) == b for first, second in ORDINALS)
    ]
    verdict = verdict_column(row) or next((key for key in row if VOTES & set(words_in(key))), None)
    if len(sides) != 1 or verdict is None or verdict in sides[0]:
        return {}
    mapping = {"response_a": sides[0][0], "response_b": sides[0][1], "winner": verdict}
    if prompt_column(row) is None:
        free = [key for key in texts if key not in mapping.values()]
        if len(free) != 1:
            return {}
        mapping = {"prompt": free[0], **mapping}
    return {name: column for name, column in mapping.items() if name != column}


def _similarity(needed: Sequence[str], columns: Sequence[str]) -> float:
    present = [name in columns or bool(similar(name, columns)) for name in needed]
    return sum(present) / len(present) + 0.01 * len(present)


def similar(name: str, columns: Sequence[str]) -> str:
    """Return the column whose name is most similar to `name`, or ""."""
    return next(iter(difflib.get_close_matches(name, sorted(columns), n=1, cutoff=0.75)), "")
