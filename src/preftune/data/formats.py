"""From a row of a data file to preference groups, one function a format.

A format is found from the rows themselves: the first of FORMATS whose `fits` accepts them. A parser raises

    BadRow   the row is not what its format says (missing column, null, wrong type)
    Drop     the row is well formed but there is nothing to learn from it (tie, empty response, ...)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from preftune.data import parsers
from preftune.data.parsers import Reading
from preftune.data.values import ROLES, BadRow, Drop, Fields, clean, is_messages, kind_name, knowledge_of
from preftune.errors import DataError
from preftune.resolve import FAULTS, in_words, place_of
from preftune.types import Judgement, Message, PreferenceGroup, Text, plain


@dataclass(frozen=True, slots=True)
class Format:
    """`example` shows one row; `fits` looks at the columns and their shape only."""

    name: str
    example: str
    columns: tuple[str, ...]
    fits: Callable[[Fields], bool]
    parse: Callable[[Fields, Reading], Iterable[PreferenceGroup]]


def _has(*columns: str) -> Callable[[Fields], bool]:
    return lambda row: all(column in row for column in columns)


def _fits_ranked(row: Fields) -> bool:
    lists = [key for key in parsers.LISTS if isinstance(row.get(key), list)]
    return len(lists) == 1 and any(key in row for key in parsers.PROMPTS)


def _two(row: Fields, kind: Callable[[Any], bool]) -> bool:
    return kind(row.get("chosen")) and kind(row.get("rejected"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(parsers.HUMAN.strip()) and parsers.ASSISTANT in value


def _is_chat(value: Any) -> bool:
    return is_messages(value) or isinstance(value, dict)


FORMATS: tuple[Format, ...] = (
    Format(
        "hh",
        '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, _is_transcript),
        parsers.hh,
    ),
    Format(
        "preference",
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(row.get("prompt")) and _two(row, _is_text),
        parsers.preference,
    ),
    Format(
        "ultrafeedback",
        '{"prompt": "...", "chosen": [message, ...], "rejected": [message, ...]}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(row.get("prompt")) and _two(row, is_messages),
        parsers.ultrafeedback,
    ),
    Format(
        "lists",
        '{"prompt": "...", "chosen": ["...", ...], "rejected": ["...", ...]}',
        ("prompt", "chosen", "rejected"),
        lambda row: "prompt" in row and _two(row, _are_texts),
        parsers.lists,
    ),
    Format(
        "chat",
        '{"prompt": [message, ...], "chosen": [message] or message or "...", "rejected": ...}',
        ("prompt", "chosen", "rejected"),
        lambda row: is_messages(row.get("prompt")) and "chosen" in row and "rejected" in row,
        parsers.chat,
    ),
    Format(
        "sharegpt",
        '{"conversations": [{"from": "human", "value": "..."}, ...], "chosen": {...}, "rejected": {...}}',
        ("conversations", "chosen", "rejected"),
        _has("conversations", "chosen", "rejected"),
        parsers.sharegpt,
    ),
    Format(
        "openai",
        '{"input": {"messages": [...]}, "preferred_output": [message], "non_preferred_output": [message]}',
        ("input", "preferred_output", "non_preferred_output"),
        _has("input", "preferred_output", "non_preferred_output"),
        parsers.openai,
    ),
    Format(
        "groups",
        '{"prompt": "...", "responses": ["...", ...], "judgements": [{"better": 0, "worse": 1}, ...]}',
        ("prompt", "responses", "judgements"),
        _has("prompt", "responses", "judgements"),
        parsers.groups,
    ),
    Format(
        "ranked",
        '{"prompt": "...", "responses": ["...", ...], "scores": [1.0, ...]}',
        ("prompt", "responses", "scores"),
        _fits_ranked,
        parsers.ranked,
    ),
    Format(
        "unpaired",
        '{"prompt": "...", "completion": "...", "label": true}',
        ("prompt", "completion", "label"),
        _has("prompt", "completion", "label"),
        parsers.unpaired,
    ),
    Format(
        "chat-implicit",
        '{"chosen": [message, ...], "rejected": [message, ...]}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, is_messages),
        parsers.chat_implicit,
    ),
    Format(
        "preference-implicit",
        '{"chosen": "prompt and answer", "rejected": "prompt and another answer"}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, _is_text),
        parsers.implicit,
    ),
    Format(
        "sft-completion",
        '{"prompt": "...", "completion": "..."}',
        ("prompt", "completion"),
        _has("prompt", "completion"),
        parsers.sft_completion,
    ),
    Format("sft-messages", '{"messages": [message, ...]}', ("messages",), _has("messages"), parsers.sft_messages),
    Format(
        "sft-conversations",
        '{"conversations": [{"from": "human", "value": "..."}, ...]}',
        ("conversations",),
        _has("conversations"),
        parsers.sft_messages,
    ),
    Format("sft-text", '{"text": "..."}', ("text",), _has("text"), parsers.sft_text),
)
BY_NAME = {f.name: f for f in FORMATS}


def detect(rows: Sequence[Fields], where: str) -> Format:
    """The format of these rows: the first that fits all, else the first that fits any of them.

    Raises DataError naming the columns found and the nearest formats.
    """
    for enough in (all, any):
        for candidate in FORMATS:
            if enough(candidate.fits(row) for row in rows):
                return candidate
    found = set(rows[0]) if rows else set()
    for candidate in FORMATS:  # the right columns with wrong values: let the parser say what is wrong
        if set(candidate.columns) <= found:
            return candidate
    nearest = sorted(FORMATS, key=lambda f: -_likeness(f, found))[:3]
    lacking = [column for column in nearest[0].columns if column not in found]
    hints = [f"{c!r}{f' (did you mean {_near(c, found)!r}?)' if _near(c, found) else ''}" for c in lacking]
    raise DataError(
        f"no known format has the columns {sorted(found)}",
        where=where,
        why=f"the nearest, {nearest[0].name!r}, also needs {', '.join(hints)}",
        fix="; ".join(
            [
                "rename columns to one of",
                *(f"{f.name}: {f.example}" for f in nearest),
                "or set data.format=my_format.py:function",
            ]
        ),
    )


def _likeness(form: Format, found: set[str]) -> float:
    near = [column in found or bool(_near(column, found)) for column in form.columns]
    return sum(near) / len(near) + 0.01 * len(near)


def _near(column: str, found: set[str]) -> str:
    """A column whose name is `column` misspelt, or ""."""
    return next(iter(difflib.get_close_matches(column, sorted(found), n=1, cutoff=0.75)), "")


class FunctionFault(BadRow):
    """The user's function failed on the row, or returned something that no row can be."""


RETURN = "return a PreferenceGroup, a list of them, or None"


def by_function(function: Callable[..., Any], row: Fields, name: str) -> list[PreferenceGroup]:
    """Groups from a user's function, as strictly checked as those of a format; its mistakes are bad rows."""
    try:
        result = function(row)
        several = isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping)
        groups = list(result) if several else [result]  # a generator runs the function only now
    except (BadRow, Drop):
        raise
    except FAULTS as error:
        raise FunctionFault(f"{place_of(error, function)}: {in_words(error)}, raised in {name}") from error
    if result is None or not groups:
        raise Drop(f"the format function returned {'None' if result is None else 'an empty list'}")
    for group in groups:
        if not isinstance(group, PreferenceGroup):
            what = "None" if group is None else f"a {type(group).__name__}"
            within = f"a {type(result).__name__} that holds " if several else ""
            raise FunctionFault(f"{name} returned {within}{what}; {RETURN}")
    try:
        return [_sound(group) for group in groups]
    except BadRow as fault:
        raise BadRow(f"{name}: {fault}") from None


def _sound(group: PreferenceGroup) -> PreferenceGroup:
    if not isinstance(group.responses, tuple | list):
        raise BadRow(f"responses must be a tuple of texts, not {kind_name(group.responses)}")
    texts = [_given(response, f"responses[{i}]") for i, response in enumerate(group.responses)]
    if not isinstance(group.judgements, tuple | list):
        raise BadRow(f"judgements must be a tuple of Judgement, not {kind_name(group.judgements)}")
    known: Fields = {"judgements": [plain(j) if isinstance(j, Judgement) else j for j in group.judgements]}
    for key in ("labels", "ranks", "ended"):
        values = getattr(group, key)
        known[key] = (list(values) or None) if isinstance(values, tuple | list) else values
    if not texts:  # such a row is counted as one without response
        return group
    return parsers.group_of(_given(group.prompt, "prompt"), texts, **knowledge_of(known, len(texts)))


def _given(value: Any, where: str) -> Text:
    if isinstance(value, str):
        return clean(value, where)
    if not isinstance(value, tuple | list) or not all(isinstance(m, Message) for m in value) or not value:
        raise BadRow(f"{where} must be text or a tuple of Message, not {kind_name(value)}")
    for message in value:
        if message.role not in ROLES.values() or not isinstance(message.content, str):
            raise BadRow(f"{where} has a message of unknown role or without text: {brief(message)}")
        clean(message.content, where)
    return tuple(value)
