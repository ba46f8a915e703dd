"""Rows with two responses and a column that says which is better -> preference groups.

The responses of a group keep the order of the file, so that verdicts for one column alone can be noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.formats.parse_pairs import common_text, common_turns, judged
from preftune.formats.parsers import Reading
from preftune.formats.slots import prompt_column, prompt_of, with_context
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    as_number,
    clean,
    get,
    grades,
    kind_name,
    number,
    one_turn,
    peek,
    string,
    text_of,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text

#: Two columns of responses. Where their names are numbered, a verdict of such a number names the response.
SIDES = (
    ("response_a", "response_b"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response-1", "response-2"),
    ("response_0", "response_1"),
    ("conversation_a", "conversation_b"),
    ("answer_a", "answer_b"),
    ("answer_1", "answer_2"),
    ("answer_0", "answer_1"),
    ("completion_a", "completion_b"),
    ("completion_1", "completion_2"),
    ("output_a", "output_b"),
    ("output_1", "output_2"),
    ("human_ref_A", "human_ref_B"),
)
#: Below 0: the first response is better by so much; 0: a tie.
STRENGTHS = ("preference_strength", "overall_preference")
VERDICTS = ("winner", "better_response_id", "safer_response_id", *STRENGTHS, "preference", "preferred", "choice",
            "label", "labels")  # fmt: skip
SURE_INDEX = ("winner", "better_response_id", "safer_response_id", "choice")  # whose 0, 1 or 1, 2 count responses
#: Columns of which one is 1 in each row (Chatbot Arena on Kaggle).
ONE_HOT = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}
TIES = ("tie", "tie (bothbad)", "tie (both bad)", "both", "bothbad", "both bad", "both_bad", "draw", "equal", "same",
        "neither")  # fmt: skip


def sides_of(row: Fields) -> tuple[str, str] | None:
    """The columns of the two responses."""
    return next((sides for sides in SIDES if sides[0] in row and sides[1] in row), None)


def verdict_column(row: Fields) -> str | None:
    """The column that says which response is better."""
    return next((key for key in VERDICTS if key in row), None)


def has_verdict(row: Fields) -> bool:
    """Whether a row says which response is better: in one column, in several, or by a score for each response."""
    return verdict_column(row) is not None or row.keys() >= ONE_HOT.keys() or score_columns(row) is not None


def score_columns(row: Fields) -> tuple[str, str] | None:
    """The columns with the scores of the two responses: score_a and score_b beside answer_a and answer_b."""
    sides = sides_of(row) or SIDES[0]
    ends = [re.split(r"(?=[^_-]$)", side)[-1] for side in sides]
    names = [(f"{kind}_{ends[0]}", f"{kind}_{ends[1]}") for kind in ("score", "rating", "reward")]
    return next((pair for pair in names if pair[0] in row and pair[1] in row), None)


def votes(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Two responses and the winner. The prompt is a column, or what two dialogues have in common."""
    first, second = sides_of(row) or SIDES[0]
    side, margin = _verdict(row, (first, second), reading)
    if side == "tie":
        _ = row.get(first), row.get(second)  # read, so that they are not taken for misspelt columns
        raise Drop("tie")
    weight, probability, stated = grades(row)
    if reading.margin_from_scores and not margin:
        raise BadRow(f"data.margin_from_scores needs scores of both responses, or {' or '.join(STRENGTHS)}")
    better = 0 if side == "a" else 1
    judgement = Judgement(better, 1 - better, weight, probability, margin if reading.margin_from_scores else stated)
    prompt, one, two = _texts(row, first, second)
    return judged(prompt, (one, two), judgement)


def _verdict(row: Fields, sides: tuple[str, str], reading: Reading) -> tuple[str, float]:
    """a, b or tie, and by how much. Raises BadRow where the scores of the responses say otherwise."""
    key = verdict_column(row)
    scored, lead = _scored(row)
    if key is None and row.keys() >= ONE_HOT.keys():
        marked = [side for name, side in ONE_HOT.items() if _word(row[name]) in ("1", "true")]
        if len(marked) != 1:
            raise BadRow(f"exactly one of the columns {', '.join(ONE_HOT)} must be 1")
        return marked[0], 0.0
    if key is None and scored:
        return scored, lead
    key = key or "winner"
    value = get(row, key)
    if key in STRENGTHS and not reading.winner_values:
        strength = number(row, key, 0.0)
        return ("tie" if strength == 0 else "a" if strength < 0 else "b"), abs(strength)
    side = _by_model(value, row) or _side(value, key, sides, reading)
    if {side, scored} == {"a", "b"}:
        names = score_columns(row) or ("", "")
        raise BadRow(
            f"column {key!r} and the scores {names[0]!r} and {names[1]!r} name different responses as the better one",
            fix=f"data.ignore=[{', '.join(names)}] trusts {key!r}; data.ignore=[{key}] trusts the scores; "
            "data.bad_rows=drop leaves such rows out and counts them",
        )
    return side, lead if side == scored else 0.0


def _scored(row: Fields) -> tuple[str, float]:
    """The side with the higher score and by how much, or "" where a score is missing."""
    names = score_columns(row)
    if names is None or any(as_number(peek(row, name)) is None for name in names):
        return "", 0.0
    first, second = (number(row, name, 0.0) for name in names)
    return ("tie" if first == second else "a" if first > second else "b"), abs(first - second)


def _by_model(value: Any, row: Fields) -> str:
    """The side whose model has this name, where the row names its two models."""
    names = [peek(row, "model_a"), peek(row, "model_b")]
    if not isinstance(value, str) or names.count(value) != 1:
        return ""
    return "ab"[[row.get("model_a"), row.get("model_b")].index(value)]


def _texts(row: Fields, first: str, second: str) -> tuple[Text, Text, Text]:
    """Prompt and responses."""
    one, two = text_of(row, first), text_of(row, second)
    if not isinstance(one, str) and not isinstance(two, str) and min(len(one), len(two)) > 1:
        n = common_turns(one, two)
        return with_context(row, one[:n]), one_turn(one[n:]), one_turn(two[n:])
    if prompt_column(row) is None and isinstance(one, str) and isinstance(two, str):
        n = common_text(one, two)
        return with_context(row, one[:n]), one[n:], two[n:]
    prompt = prompt_of(row)
    if isinstance(prompt, str) and not (isinstance(one, str) and isinstance(two, str)):
        prompt = (Message("user", prompt),)
    one, two = (side if isinstance(side, str) else one_turn(side) for side in (one, two))
    return prompt, one, two


def _side(value: Any, key: str, sides: tuple[str, str], reading: Reading) -> str:
    """a, b or tie."""
    word = _word(value)
    if word in reading.winner_values:
        return str(reading.winner_values[word])
    if str(value) in _names(sides, reading):
        return "ab"[_names(sides, reading).index(str(value))]
    if not reading.winner_values or word in TIES:
        named = _named(word)
        if named:
            return named
    raise BadRow(
        f"column {key!r} must say which response is better, not {value!r}",
        fix="declare its values: data.winner_values={a: VALUE, b: VALUE, tie: VALUE}",
    )


def _names(sides: tuple[str, str], reading: Reading) -> list[str]:
    """The names that the columns of the two responses have in the file."""
    return [reading.columns.get(side, side) for side in sides]


def _named(word: str) -> str:
    """What a verdict in words means: a, first, tie, ..."""
    if word in TIES:
        return "tie"
    return {"a": "a", "first": "a", "b": "b", "second": "b"}.get(word, "")


def _word(value: Any) -> str:
    """A verdict as it is compared: 1, 1.0, "1" and "model_1" are the same, as are "A" and "model_a"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    word = str(value).strip().lower()
    named = re.fullmatch(r"(?:model|response|answer|assistant|completion|output|generation)[ _-]?([ab]|\d)", word)
    if named:
        return named[1]
    return word.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", word) else word


def settled(rows: Iterable[Fields], reading: Reading, where: str) -> Reading:
    """`reading` with what each number in the verdict column means, found from all rows.

    Raises DataError where the numbers have two meanings.
    """
    if reading.winner_values:
        return replace(reading, winner_values=declared(reading.winner_values))
    words: set[str] = set()
    sides, key = SIDES[0], "winner"
    for row in rows:
        key, sides = verdict_column(row) or key, sides_of(row) or sides
        if row.get(key) is not None and key not in STRENGTHS and row[key] not in _names(sides, reading):
            words.add(_word(row[key]))
    numbers = {word for word in words if re.fullmatch(r"-?\d+", word)}
    if not numbers:
        return reading
    if sides == ("human_ref_A", "human_ref_B"):  # SHP: 1 means that A is better
        return replace(reading, winner_values={"1": "a", "0": "b"})
    digits = tuple(match[0] if (match := re.search(r"\d+$", side)) else "" for side in sides)
    if digits[0] and numbers <= set(digits):
        return replace(reading, winner_values={digits[0]: "a", digits[1]: "b"})
    if not digits[0] and key in SURE_INDEX:
        for pair in (("0", "1"), ("1", "2")):
            if numbers <= set(pair) and (numbers - {"1"}):
                return replace(reading, winner_values={pair[0]: "a", pair[1]: "b"})
    low, high = min(numbers, key=int), max(numbers, key=int)
    high = str(int(low) + 1) if low == high else high
    raise DataError(
        f"column {key!r} has the values {', '.join(sorted(numbers))}, and it is not clear which response each means",
        where=where,
        why=f"the responses are {sides[0]!r} and {sides[1]!r}",
        fix=f"declare the values, for instance data.winner_values={{a: {low}, b: {high}}}",
    )


def declared(values: Mapping[str, Any]) -> dict[str, str]:
    """{a: VALUE, b: VALUE, tie: VALUE or a list of them} inverted: the side that each value names."""
    meaning: dict[str, str] = {}
    for side, given in values.items():
        if side not in ("a", "b", "tie"):
            fix = f"use a, b and tie; {did_you_mean(side, ('a', 'b', 'tie'))}"
            raise ConfigError(f"unknown side {side!r}", where="data.winner_values", fix=fix)
        for value in given if isinstance(given, list) else [given]:
            if meaning.setdefault(_word(value), side) != side:
                raise ConfigError(f"{value!r} is declared twice", where="data.winner_values", fix="name it once")
    return meaning


def summaries(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Two summaries of a Reddit post and the index of the better one (openai/summarize_from_feedback)."""
    info, items = get(row, "info"), get(row, "summaries")
    if not isinstance(info, dict) or not isinstance(items, list) or len(items) != 2:
        raise BadRow(
            f"'info' must be an object and 'summaries' a list of two, not {kind_name(info)}, {kind_name(items)}"
        )
    choice = _word(get(row, "choice"))
    if choice not in ("0", "1"):
        raise BadRow(f"column 'choice' must be 0 or 1, not {row['choice']!r}")
    if not info.get("post"):
        raise BadRow("column 'info' has no post: only summaries of posts have a known prompt")
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post")]
    lines = [lead + clean(str(info[key]), f"info.{key}") for lead, key in parts if info.get(key)]
    one, two = (string(item if isinstance(item, dict) else {}, "text") for item in items)
    return judged("\n\n".join([*lines, "TL;DR:"]), (one, two), Judgement(int(choice), 1 - int(choice)))
