"""The table of data formats, the detection of a format, and formats that are functions of the user.

The format of a file is the one whose `fits` accepts most rows, the first in FORMATS if several do. A parser raises

    BadRow   the row breaks its format (missing column, null, wrong type)
    Drop     the row is well formed but cannot be trained on (tie, empty response, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from preftune.formats import parse_pairs, parse_sft, parse_votes, parsers, trees
from preftune.formats.column_roles import (
    DIALOGUES,
    completion_column,
    pair_columns,
    prompt_column,
    prompt_value,
)
from preftune.formats.guess import unknown_columns_error
from preftune.formats.parsers import Reading
from preftune.formats.transcripts import is_transcript
from preftune.formats.values import (
    ROLES,
    BadRow,
    Drop,
    Fields,
    annotations_of,
    has_role,
    is_dialogue,
    is_messages,
    kind_name,
    peek,
    require_utf8,
)
from preftune.formats.verdicts import response_columns
from preftune.resolve import FAULTS, in_words, place_of
from preftune.types import Judgement, Message, PreferenceGroup, Text, message_dict, plain


@dataclass(frozen=True, slots=True)
class Format:
    """A data format.

    example   one row
    columns   the columns of the example
    fits      whether a row seems to have this format, judged by its columns and their types
    parse     turns a row into groups
    adjust    completes the options from all rows before any is parsed, for formats whose rows are ambiguous alone
    """

    name: str
    example: str
    columns: tuple[str, ...]
    fits: Callable[[Fields], bool]
    parse: Callable[[Fields, Reading], Iterable[PreferenceGroup]]
    adjust: Callable[[Iterable[Fields], Reading, str], Reading] | None = None


def _has(*columns: str) -> Callable[[Fields], bool]:
    return lambda row: all(peek(row, column) is not None for column in columns)


def _fits_ranked(row: Fields) -> bool:
    lists = [key for key in parsers.RESPONSE_LISTS if isinstance(row.get(key), list)]
    return len(lists) == 1 and prompt_column(row) is not None


def _both(row: Fields, has_type: Callable[[Any], bool]) -> bool:
    """Return whether the row has a pair of response columns and both values have the type."""
    columns = pair_columns(row)
    return columns is not None and all(has_type(row.get(column)) for column in columns)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _has_lists(row: Fields) -> bool:
    """Return whether both responses are texts or lists of texts, and at least one is a list."""
    return _both(row, lambda value: _is_text(value) or _are_texts(value)) and not _both(row, _is_text)


def _has_answers(row: Fields) -> bool:
    return pair_columns(row) is not None


def _is_labelled(row: Fields) -> bool:
    return (
        parse_sft.label_column(row) is not None
        and completion_column(row) is not None
        and prompt_column(row) not in (None, *DIALOGUES)
    )


def _is_labelled_dialogue(row: Fields) -> bool:
    label = parse_sft.label_column(row)
    return label is not None and parse_sft.is_label(row[label]) and any(is_dialogue(row.get(key)) for key in DIALOGUES)


def _is_last_turn(row: Fields) -> bool:
    worse = any(row.get(key) is not None for key in ("rejected_response", "rejected_messages"))
    return worse and any(is_messages(peek(row, key)) for key in DIALOGUES) and not _has_answers(row)


def _is_demonstration(row: Fields) -> bool:
    column = completion_column(row)
    prompt = prompt_column(row)
    return column is not None and prompt not in (None, *DIALOGUES) and (prompt != "context" or column == "completion")


def _is_sft(*keys: str) -> Callable[[Fields], bool]:
    return lambda row: (
        not _has_answers(row)
        and response_columns(row) is None
        and any(row.get(key) is not None and not isinstance(row[key], dict) for key in keys)
    )


FORMATS: tuple[Format, ...] = (
    Format(
        "hh",
        '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
        ("chosen", "rejected"),
        lambda row: prompt_column(row) is None and _both(row, is_transcript),
        parse_pairs.hh,
    ),
    Format(
        "preference",
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(prompt_value(row)) and _both(row, _is_text),
        parse_pairs.preference,
    ),
    Format(
        "lists",
        '{"prompt": "...", "chosen": ["...", ...], "rejected": ["...", ...]}',
        ("prompt", "chosen", "rejected"),
        lambda row: prompt_column(row) is not None and _has_lists(row),
        parse_pairs.lists,
    ),
    Format(
        "ultrafeedback",
        '{"prompt": "...", "chosen": [message, ...], "rejected": [message, ...]}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(prompt_value(row)) and _has_answers(row) and not _both(row, _is_text),
        parse_pairs.ultrafeedback,
    ),
    Format(
        "sharegpt",
        '{"conversations": [{"from": "human", "value": "..."}, ...], "chosen": {...}, "rejected": {...}}',
        ("conversations", "chosen", "rejected"),
        lambda row: prompt_column(row) == "conversations" and _has_answers(row),
        parse_pairs.chat,
    ),
    Format(
        "chat",
        '{"prompt": [message, ...], "chosen": [message] or message or "...", "rejected": ...}',
        ("prompt", "chosen", "rejected"),
        lambda row: isinstance(prompt_value(row), list | dict) and _has_answers(row),
        parse_pairs.chat,
    ),
    Format(
        "openai",
        '{"input": {"messages": [...]}, "preferred_output": [message], "non_preferred_output": [message]}',
        ("input", "preferred_output", "non_preferred_output"),
        _has("input", "preferred_output", "non_preferred_output"),
        parse_pairs.openai,
    ),
    Format(
        "last-turn",
        '{"messages": [message, ...], "rejected_response": "..."}',
        ("messages", "rejected_response"),
        _is_last_turn,
        parse_pairs.last_turn,
    ),
    Format(
        "votes",
        '{"prompt": "...", "response_a": "...", "response_b": "...", "winner": "a"}',
        ("prompt", "response_a", "response_b", "winner"),
        lambda row: response_columns(row) is not None and parse_votes.has_verdict(row),
        parse_votes.votes,
        parse_votes.with_winner_values,
    ),
    Format(
        "summaries",
        '{"info": {"post": "...", "title": "..."}, "summaries": [{"text": "..."}, ...], "choice": 0}',
        ("info", "summaries", "choice"),
        _has("info", "summaries", "choice"),
        parse_votes.summaries,
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
        "tree",
        '{"prompt": {"role": "prompter", "text": "...", "replies": [{"role": "assistant", "text": "...", "rank": 0}]}}',
        ("prompt",),
        trees.is_tree,
        trees.tree,
    ),
    Format(
        "unpaired",
        '{"prompt": "...", "completion": "...", "label": true}',
        ("prompt", "completion", "label"),
        _is_labelled,
        parse_sft.unpaired,
    ),
    Format(
        "unpaired-messages",
        '{"messages": [message, ...], "label": true}',
        ("messages", "label"),
        _is_labelled_dialogue,
        parse_sft.unpaired_messages,
    ),
    Format(
        "chat-implicit",
        '{"chosen": [message, ...], "rejected": [message, ...]}',
        ("chosen", "rejected"),
        lambda row: prompt_column(row) is None and _has_answers(row) and not _both(row, _is_text),
        parse_pairs.chat_implicit,
    ),
    Format(
        "preference-implicit",
        '{"chosen": "prompt and response", "rejected": "prompt and other response"}',
        ("chosen", "rejected"),
        lambda row: prompt_column(row) is None and _both(row, _is_text),
        parse_pairs.implicit,
    ),
    Format(
        "sft-completion",
        '{"prompt": "...", "completion": "..."}',
        ("prompt", "completion"),
        _is_demonstration,
        parse_sft.sft_completion,
    ),
    Format(
        "sft-messages",
        '{"messages": [message, ...]}',
        ("messages",),
        _is_sft("messages"),
        parse_sft.sft_messages,
    ),
    Format(
        "sft-conversations",
        '{"conversations": [{"from": "human", "value": "..."}, ...]}',
        ("conversations",),
        _is_sft("conversations", "conversation"),
        parse_sft.sft_messages,
    ),
    Format("sft-text", '{"text": "..."}', ("text",), _is_sft("text"), parse_sft.sft_text),
    Format(
        "ordered",
        '{"prompt": "...", "responses": ["the best one", ..., "the worst one"]}',
        ("prompt", "responses"),
        lambda row: False,  # only data.format says that a list is ordered
        parsers.ordered,
    ),
)
#: Formats of pairs with a prompt, whose rows may be mixed: text in some, messages in others.
MIXED = ("preference", "ultrafeedback", "chat")
BY_NAME = {f.name: f for f in FORMATS}


def detect(rows: Sequence[Fields], where: str) -> Format:
    """Return the format that fits most of these rows, the first one if several fit equally many.

    Raises DataError if no format fits; it lists the columns and suggests a value for data.columns.
    """
    counts = [(sum(map(candidate.fits, rows)), candidate) for candidate in FORMATS]
    count, best = max(counts, key=lambda item: item[0])
    if count:
        return best
    columns = set(rows[0]) if rows else set()
    # for the right columns with wrong values, the parser raises a specific error
    for candidate in sorted(FORMATS, key=lambda candidate: -len(candidate.columns)):
        is_text = candidate.name == "sft-text" and response_columns(rows[0]) is not None
        if set(candidate.columns) <= columns and candidate.name not in ("ordered", "tree") and not is_text:
            return candidate
    raise unknown_columns_error(rows, {f.name: (f.columns, f.example) for f in FORMATS}, where)


def format_of_row(row: Fields, usual: Format) -> Format:
    """Return the format of one row: `usual`, the format of the file, or another one of MIXED that fits instead."""
    if usual.name not in MIXED or usual.fits(row):
        return usual
    if not _both(row, lambda value: isinstance(value, str) or has_role(value) or is_dialogue(value)):
        return usual
    return next((BY_NAME[name] for name in MIXED if BY_NAME[name].fits(row)), usual)


class FunctionFault(BadRow):
    """The user's function failed on the row or returned a wrong type."""


RETURN = "return a PreferenceGroup, a list of them, or None"


def parse_with_function(function: Callable[..., Any], row: Fields, name: str) -> list[PreferenceGroup]:
    """Call a user's function and check the groups that it returns. Raises BadRow for its mistakes."""
    try:
        result = function(row)
        several = isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping)
        groups = list(result) if several else [result]  # runs the function if it is a generator
    except (BadRow, Drop):
        raise
    except FAULTS as error:
        raise FunctionFault(f"{place_of(error, function)}: {in_words(error)}, raised in {name}") from error
    if result is None or not groups:
        raise Drop(f"the format function returned {'None' if result is None else 'an empty list'}")
    for group in groups:
        if not isinstance(group, PreferenceGroup):
            kind = type(group).__name__
            what = f"a {type(result).__name__} with an item of type {kind}" if several else f"a value of type {kind}"
            raise FunctionFault(f"{name} returned {what}; {RETURN}")
    try:
        return [_checked(group) for group in groups]
    except BadRow as fault:
        raise BadRow(f"{name}: {fault}") from None


def _checked(group: PreferenceGroup) -> PreferenceGroup:
    """Check a group as the parser of the format `groups` does."""
    if not isinstance(group.responses, tuple | list):
        raise BadRow(f"responses must be a tuple of texts, not {kind_name(group.responses)}")
    texts = [_checked_text(response, f"responses[{i}]") for i, response in enumerate(group.responses)]
    if not isinstance(group.judgements, tuple | list):
        raise BadRow(f"judgements must be a tuple of Judgement, not {kind_name(group.judgements)}")
    fields: Fields = {"judgements": [plain(j) if isinstance(j, Judgement) else j for j in group.judgements]}
    for key in ("labels", "ranks", "ended"):
        values = getattr(group, key)
        fields[key] = (list(values) or None) if isinstance(values, tuple | list) else values
    if not texts:  # the row is dropped later, as a row without a response
        return group
    return parsers.group_of(_checked_text(group.prompt, "prompt"), texts, **annotations_of(fields, len(texts)))


def _checked_text(value: Any, where: str) -> Text:
    if isinstance(value, str):
        return require_utf8(value, where)
    if not isinstance(value, tuple | list) or not all(isinstance(m, Message) for m in value) or not value:
        raise BadRow(f"{where} must be text or a tuple of Message, not {kind_name(value)}")
    for message in value:
        if message.role not in ROLES.values() or not isinstance(message.content, str):
            raise BadRow(f"{where} has a message with an unknown role or without text: {brief(message)}")
        require_utf8(message.content, where)
        try:
            message_dict(message)
        except (TypeError, ValueError):
            what = f"{where} has a message whose extra is not ((name, JSON text), ...): {brief(message)}"
            raise BadRow(what) from None
    return tuple(value)
