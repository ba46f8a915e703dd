"""Build the error for rows that match no format: the missing columns and a suggested data.columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.column_roles import completion_column, pair_columns, prompt_column
from preftune.formats.hints import WORDS, suggests
from preftune.formats.names import CANONICAL, columns_setting, quoted, words_in
from preftune.formats.parse_sft import is_label
from preftune.formats.parsers import RATINGS, SCORES, TEXT_FIELDS
from preftune.formats.values import Fields, is_blank, is_dialogue, is_messages, peek
from preftune.formats.verdicts import normalise, response_columns, verdict_column

RESPONSE_LISTS = {"responses", "generations", "completions", "answers", "outputs", "candidates"}
ORDINALS = (("left", "right"), ("first", "second"))
LABELS_OF_VALUES = {"role", "from", "name", "type", "kind"}  # fields inside objects that only describe other fields
PLACEHOLDER = "COLUMN"
VOTES = {
    *("winner", "win", "better", "preferred", "preference", "pref", "choice", "verdict", "vote", "judgement", "label"),
}


def unknown_columns_error(
    rows: Sequence[Fields], formats: Mapping[str, tuple[tuple[str, ...], str]], where: str
) -> DataError:
    """Return the error for rows that match no format. `formats` has the columns and an example row of each format."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    what = f"no known format has the columns {sorted(columns)}"
    mapping, extra = _suggest_mapping(rows), ""
    if not mapping and rows:
        mapping = _suggest_inside(rows)
    if mapping:
        extra = _extra_advice(mapping, rows[0])
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
        return DataError(what, where=where, why=why, fix=f"set {columns_setting(mapping)}{extra}")
    if rows and response_columns(rows[0]):
        return DataError(what, where=where, why=why, fix=_missing_verdict(rows))
    closest = sorted(formats, key=lambda name: -_similarity(formats[name][0], columns))[:3]
    fixes = [
        "map the columns, for example data.columns={prompt: COLUMN, chosen: COLUMN, rejected: COLUMN} or "
        "{prompt: COLUMN, response_a: COLUMN, response_b: COLUMN, winner: COLUMN}",
        *([inside] if (inside := _fields_inside(rows)) else []),
        *(f"{name}: {formats[name][1]}" for name in closest),
        "or set data.format=my_format.py:function",
    ]
    return DataError(what, where=where, why=why, fix="; ".join(fixes))


def _missing_verdict(rows: Sequence[Fields]) -> str:
    """Say how to map the verdict of rows with two responses. Fields that name a side are listed."""
    sides = response_columns(rows[0]) or ("", "")
    leaves = [dict(_leaves(row, "", 6, "*")) for row in rows]
    names = [name for name in leaves[0] if 2 * sum(_names_side(leaf.get(name), sides) for leaf in leaves) > len(leaves)]
    mapping = {"prompt": "text"} if prompt_column(rows[0]) is None and isinstance(rows[0].get("text"), str) else {}
    where = f", where {PLACEHOLDER} is one of {', '.join(names)}" if names else ""
    fix = columns_setting({**mapping, "winner": PLACEHOLDER})
    return f"map the column that says which response is better: {fix}{where}"


def _fields_inside(rows: Sequence[Fields]) -> str:
    """Say how to name fields inside columns, with those that the rows have, or return ""."""
    names = [path for path, value in _leaves(rows[0], "", 4) if "." in path and isinstance(value, str)] if rows else []
    return f"a field inside a column is a name with a dot: {', '.join(names[:8])}" if names else ""


def _missing_columns(formats: Mapping[str, tuple[tuple[str, ...], str]], columns: Sequence[str]) -> str:
    """Return a text with the most similar format and the columns that it also needs, or ""."""
    # a format whose columns are all there was tried, and its values did not fit
    tried = {name for name, (needed, _) in formats.items() if set(needed) <= set(columns)}
    candidates = [name for name in formats if name not in tried]  # in their order: of equals, the plain one is first
    closest = max(candidates, key=lambda name: _similarity(formats[name][0], columns))
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
    """Suggest data.columns from names and values, for pairs, votes, rankings or single responses; {} if unclear."""
    row = rows[0] if rows else {}
    ranking = _suggest_ranking(row)
    if ranking:
        return ranking
    texts = [
        k
        for k, v in row.items()
        if (isinstance(v, str) or is_dialogue(v) or (isinstance(v, list) and v and all(isinstance(t, str) for t in v)))
        and (not metadata.is_metadata(k, row) or metadata.can_be_prompt(k, v) or k.lower() in WORDS["prompt"])
        and k not in metadata.LABEL_COLUMNS
    ]
    votes = _suggest_votes(rows, texts)
    if votes:
        return votes
    pair = _suggest_by_words(row, texts, ("chosen", "rejected", "prompt"))
    if {"chosen", "rejected"} <= {*pair, *row}:
        return _with_prompt(pair, row, [key for key in texts if key not in ("chosen", "rejected")])
    label = _label_column(rows)
    texts = [key for key in texts if key != label]
    single = _suggest_by_words(row, texts, ("completion", "prompt"))
    both = ("completion" in single or completion_column(row)) and ("prompt" in single or prompt_column(row))
    if both and label:
        return single | ({"label": label} if label not in ("label", "kto_tag") else {})
    return single if both and len(texts) == 2 else {}


def _with_prompt(mapping: dict[str, str], row: Fields, texts: Sequence[str]) -> dict[str, str]:
    """Add the column of the prompt to a mapping: the only other text column, or the placeholder COLUMN."""
    if "prompt" in mapping or prompt_column(row) is not None:
        return mapping
    free = [key for key in texts if key not in mapping.values()]
    free = [key for key in free if suggests("prompt", key)] or free
    return {**mapping, "prompt": free[0] if len(free) == 1 else PLACEHOLDER}


def _suggest_by_words(row: Fields, texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Map each of `names` to the column whose name suggests it, if there is exactly one."""
    mapping: dict[str, str] = {}
    prompt = prompt_column(row)
    for name in names:
        if name in row or (name == "prompt" and prompt) or (name != "prompt" and pair_columns(row)):
            continue
        free = [key for key in texts if key not in mapping.values() and key != prompt]
        matches = [key for key in free if similar(name, [key]) or suggests(name, key)]
        if name == "prompt" and not matches:
            matches = [key for key in free if is_dialogue(peek(row, key))]
        if len(matches) == 1:
            mapping[name] = matches[0]
    return mapping


def _label_column(rows: Sequence[Fields]) -> str | None:
    """Return the only column that can be the label of a response: it says good in some rows and bad in others."""
    names = [
        key
        for key in rows[0]
        if (key in ("label", "kto_tag") or key in metadata.FLAGS or suggests("label", key))
        and all(is_label(peek(row, key)) for row in rows if not is_blank(peek(row, key)))
        and len({str(peek(row, key)) for row in rows}) > 1
    ]
    return names[0] if len(names) == 1 else None


def _suggest_inside(rows: Sequence[Fields]) -> dict[str, str]:
    """Suggest data.columns for values inside objects: prompt: data.prompt, winner: annotations.0.value."""
    mapping = _suggest_mapping([dict(_leaves(row, "", 6)) for row in rows])
    roles = mapping.keys()
    is_complete = {"response_a", "response_b", "winner"} <= roles or {"chosen", "rejected"} <= roles
    is_complete |= {"responses"} <= roles or ("label" in roles and "completion" in roles)
    return mapping if is_complete and any("." in column for column in mapping.values()) else {}


def _leaves(value: object, path: str, depth: int, item: str = "0") -> list[tuple[str, object]]:
    """Return the paths and values inside an object. Only the first object of a list counts, with the name `item`."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and not is_dialogue(value):
        value = {item: value[0]}
    if not isinstance(value, dict) or not depth:
        return [(path, value)]
    fields = [
        (key, field)
        for key, field in value.items()
        if key not in LABELS_OF_VALUES
        and (not metadata.is_metadata(key, {key: field}) or is_label(field) or is_messages(field))
    ]
    inside = [(f"{path}.{key}" if path else key, field) for key, field in fields]
    return [leaf for name, field in inside for leaf in _leaves(field, name, depth - 1, item)]


def _extra_advice(mapping: Mapping[str, str], row: Fields) -> str:
    """Return what to do besides data.columns: name the prompt, and ignore texts that no format would read."""
    advice = ""
    if mapping.get("prompt") == PLACEHOLDER:
        advice = f", where {PLACEHOLDER} has the prompt (omit it if the responses contain the prompt)"
    used = {name for column in mapping.values() for name in (column, column.partition(".")[0])} | {prompt_column(row)}
    used |= {*(pair_columns(row) or ()), *(response_columns(row) or ()), verdict_column(row), completion_column(row)}
    rest = [
        key
        for key, value in row.items()
        if key not in {*used, *CANONICAL, *metadata.CONTEXT} and not metadata.is_metadata(key, row)
        if metadata.texts_in(value) and not metadata.is_number(value)
    ]
    if rest and PLACEHOLDER not in mapping.values():
        advice += f" and, to train without the other columns, data.ignore=[{', '.join(map(quoted, rest))}]"
    return advice


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


def _suggest_votes(rows: Sequence[Fields], texts: Sequence[str]) -> dict[str, str]:
    """Suggest two columns whose names differ only in the last character or in an ordinal, and a verdict column."""
    row = rows[0]
    sides = [
        (a, b)
        for a in texts
        for b in texts
        if (a[:-1] == b[:-1] and a[-1:].lower() + b[-1:].lower() in ("ab", "12", "01", "xy"))
        or any(first in words_in(a) and a.replace(first, second) == b for first, second in ORDINALS)
    ]
    if len(sides) != 1:
        return {}
    verdict = verdict_column(row) or _verdict_by_values(rows, sides[0])
    verdict = verdict or next((key for key in row if VOTES & set(words_in(key.rpartition(".")[2]))), None)
    if verdict is None or verdict in sides[0]:
        return {}
    mapping = {"response_a": sides[0][0], "response_b": sides[0][1], "winner": verdict}
    mapping = _with_prompt(mapping, row, [key for key in texts if key != verdict])
    mapping = {name: mapping[name] for name in ("prompt", "response_a", "response_b", "winner") if name in mapping}
    native = response_columns(row) == sides[0]  # no need to map these
    return {name: column for name, column in mapping.items() if name != column and not (native and column in sides[0])}


def _verdict_by_values(rows: Sequence[Fields], sides: tuple[str, str]) -> str | None:
    """Return the only column that has the name of a side in most rows, or None."""
    names = [
        key
        for key in rows[0]
        if key not in sides and 2 * sum(_names_side(peek(row, key), sides) for row in rows) > len(rows)
        if len({str(peek(row, key)) for row in rows}) > 1
    ]
    return names[0] if len(names) == 1 else None


def _names_side(value: object, sides: tuple[str, str]) -> bool:
    return isinstance(value, str) and (value in sides or normalise(value) in ("a", "b"))


def _similarity(needed: Sequence[str], columns: Sequence[str]) -> float:
    present = [name in columns or bool(similar(name, columns)) for name in needed]
    return sum(present) / len(present) + 0.01 * len(present)


def similar(name: str, columns: Sequence[str]) -> str:
    """Return the column whose name is most similar to `name`, or ""."""
    return next(iter(difflib.get_close_matches(name, sorted(columns), n=1, cutoff=0.75)), "")
