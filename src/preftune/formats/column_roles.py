"""Find the columns with prompt, responses and scores of a row, by the names that public data sets use."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from preftune.formats.values import (
    BadRow,
    Fields,
    as_number,
    get,
    has_role,
    is_blank,
    is_dialogue,
    kind_name,
    messages_of,
    number,
    peek,
    require_utf8,
    text_of,
)
from preftune.types import Message, Text

TEXT_PROMPTS = ("prompt", "instruction", "question", "query")
DIALOGUES = ("messages", "conversations", "conversation", "trajectory", "contents")  # columns that are never text
PROMPTS = (*TEXT_PROMPTS, "input", *DIALOGUES, "context", "history")
SYSTEMS = ("system", "system_prompt", "system_message")
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_response", "rejected_response"),
    ("preferred_response", "dispreferred_response"),
    ("chosen_answer", "rejected_answer"),
    ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("response", "rejected_response"),  # ms-swift
    ("preferred_output", "non_preferred_output"),
)
COMPLETIONS = ("completion", "output", "response", "answer")
KINDS_OF_SCORE = ("score", "rating", "reward", "avg_rating")


def prompt_column(row: Fields) -> str | None:
    """Return the column with the prompt: the first of PROMPTS with a suitable value. Empty text is the last resort."""
    usable = [key for key in PROMPTS if key in row and _can_be_prompt(peek(row, key), key)]
    if usable:
        return next((key for key in usable if peek(row, key)), usable[0])
    # a column with an unsuitable value, for which the parser raises an error
    return next((key for key in ("prompt", *DIALOGUES[:2]) if peek(row, key) is not None), None)


def _can_be_prompt(value: Any, key: str) -> bool:
    if isinstance(value, str):
        return key not in DIALOGUES
    if key == "history":  # a list of earlier turns
        return False
    if key == "question" and _question_text(value) is not None:
        return True
    return is_dialogue(value) or (has_role(value) and key != "input")


def _question_text(value: Any) -> str | None:
    """Return the text of a question that is stored with its source (openai/webgpt_comparisons), or None."""
    text = value.get("full_text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def prompt_value(row: Fields) -> Any:
    """Return the value of the prompt column without marking the column as used, or None."""
    key = prompt_column(row)
    return None if key is None else peek(row, key)


def prompt_of(row: Fields, text_only: bool = False) -> Text:
    """Return the prompt of a row: `system` and `history`, then the prompt column, then `input`.

    A text prompt with a system text or a history becomes a chat, because plain text cannot represent these.
    """
    key = prompt_column(row) or "prompt"
    question = _question_text(get(row, key))
    if isinstance(row[key], str) or question is not None:
        prompt: Text = _with_input(row, key, require_utf8(question or row[key], key))
    elif text_only:
        raise BadRow(f"column {key!r} must be text, not {kind_name(row[key])}")
    else:
        prompt = text_of(row, key)
    return add_context(row, prompt, key)


def _with_input(row: Fields, key: str, prompt: str) -> str:
    text = row.get("input") if key in TEXT_PROMPTS else None
    if is_blank(text):
        return prompt
    if not isinstance(text, str):
        raise BadRow(f"column 'input', which is appended to {key!r}, must be text, not {kind_name(text)}")
    return "\n".join(part for part in (prompt, require_utf8(text, "input")) if part)


def add_context(row: Fields, prompt: Text, key: str = "prompt") -> Text:
    """Prepend the system text and the earlier turns that the row has in separate columns."""
    system, turns = _system_of(row), () if key == "history" else _history_of(row)
    if not system and not turns:
        return prompt
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if messages and messages[0].role == "system":
        if system and system.strip() != messages[0].content.strip():
            raise BadRow("the system column differs from the system message of the prompt")
        return (messages[0], *turns, *messages[1:])
    return (*((Message("system", system),) if system else ()), *turns, *messages)


def _system_of(row: Fields) -> str:
    texts = {key: row.get(key) for key in SYSTEMS if not is_blank(row.get(key))}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise BadRow(f"column {key!r} must be text, not {kind_name(text)}")
    if len({str(text).strip() for text in texts.values()}) > 1:
        raise BadRow(f"the columns {' and '.join(map(repr, texts))} contain different system texts")
    return next((require_utf8(str(text), key) for key, text in texts.items() if str(text).strip()), "")


def _history_of(row: Fields) -> tuple[Message, ...]:
    """Return the earlier turns, stored as messages or as [question, answer] pairs."""
    history = row.get("history")
    if is_blank(history):
        return ()
    if is_dialogue(history):
        return messages_of(history, "history")
    turns: list[Message] = []
    for i, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow(
                "column 'history' must be a list of messages or of [question, answer] pairs of text",
                fix="rewrite the column, or omit it with data.ignore=[history]",
            )
        texts = [require_utf8(text, f"history[{i}]") for text in pair]
        turns += [Message("user", texts[0]), Message("assistant", texts[1])]
    return tuple(turns)


def pair_columns(row: Fields) -> tuple[str, str] | None:
    """Return the columns with the better and the worse response, or None."""
    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)


def completion_column(row: Fields) -> str | None:
    """Return the column with the only response of a row, or None."""
    return next((key for key in COMPLETIONS if peek(row, key) is not None), None)


#: Pairs of columns with the scores of the better and the worse response: score_chosen and score_rejected, ...
SCORES = [
    (order.format(kind=kind, side="chosen"), order.format(kind=kind, side="rejected"))
    for kind, order in product(KINDS_OF_SCORE, ("{kind}_{side}", "{side}_{kind}", "{kind}-{side}", "{side}-{kind}"))
]
#: Words in other names of score columns: chosen_armorm_score, quality_rejected, score_j, ...
SCORE_WORDS = re.compile("score|rating|reward|quality|grade|elo")
SIDES_OF_PAIRS = (("chosen", "rejected"), ("preferred", "dispreferred"), ("j", "k"))


def scores_of(row: Fields) -> tuple[float, float] | None:
    """Return the scores of the better and the worse response, or None.

    Raises BadRow if the worse response has the higher score: in any of the SCORES columns, or, if there are none, in
    all other score columns.
    """
    scored = []
    for better, worse in SCORES:
        if better not in row or worse not in row:
            continue
        if row.get(better) not in (None, "") and row.get(worse) not in (None, ""):
            scored.append((better, number(row, better, 0.0), worse, number(row, worse, 0.0)))
    swapped = [item for item in scored if item[1] < item[3]]
    others = [] if scored else _other_scores(row)
    if others and all(high <= low for _, high, _, low in others):
        swapped = [item for item in others if item[1] < item[3]]
    if swapped:
        scores = ", ".join(f"{better} {high:g} and {worse} {low:g}" for better, high, worse, low in swapped)
        names = ", ".join(f"{better}, {worse}" for better, _, worse, _ in swapped)
        sides = pair_columns(row) or ("chosen", "rejected")
        raise BadRow(
            f"the rejected response has the higher score: {scores}",
            fix=f"to ignore the scores, set data.ignore=[{names}]; to swap the responses, also set "
            f"data.columns={{chosen: {sides[1]}, rejected: {sides[0]}}}; to drop such rows, set data.bad_rows=drop",
        )
    return (scored[0][1], scored[0][3]) if scored else None


def _other_scores(row: Fields) -> list[tuple[str, float, str, float]]:
    """Return (better, score, worse, score) of other score columns, which only show whether the sides are swapped."""
    scored = []
    for name in filter(SCORE_WORDS.search, row):
        words = re.split(r"([^a-zA-Z]+)", name)
        for better, worse in SIDES_OF_PAIRS:
            other = "".join(worse if word == better else word for word in words)
            high, low = as_number(peek(row, name)), as_number(peek(row, other))
            if other != name and high is not None and low is not None:
                scored.append((name, high, other, low))
    return scored
