"""Parse rows with two responses and a verdict into preference groups.

The responses keep the order of the file, so that verdicts that always favour the same column can be detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.formats.column_roles import add_context, prompt_column, prompt_of
from preftune.formats.exchanges import alternating
from preftune.formats.parse_pairs import common_prefix_length, prompt_turn_count, two_response_group
from preftune.formats.parsers import Reading
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    as_number,
    get,
    judgement_numbers,
    kind_name,
    messages_of,
    number,
    peek,
    require_utf8,
    response_turns,
    string,
    text_of,
)
from preftune.formats.verdicts import (
    SIDES,
    STRENGTHS,
    TIES,
    annotator_columns,
    normalise,
    response_columns,
    score_columns,
    submitted,
    verdict_column,
    verdict_of,
    winner_values_fix,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text

BETTER, SAFER = "better_response_id", "safer_response_id"  # the two verdicts of PKU-SafeRLHF
INDEX_COLUMNS = ("winner", "better_response_id", "safer_response_id", "choice")  # numbers are response indexes
#: Columns of which exactly one is 1 in each row (Chatbot Arena on Kaggle).
ONE_HOT = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def has_verdict(row: Fields) -> bool:
    """Return whether a row says which response is better: in a column, ONE_HOT columns, scores, or of annotators."""
    named = verdict_column(row) is not None or row.keys() >= ONE_HOT.keys() or score_columns(row) is not None
    return named or bool(annotator_columns(row))


def votes(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse two responses and the winner. The prompt is a column, or the common beginning of the two responses."""
    first, second = response_columns(row) or SIDES[0]
    side, margin = _verdict(row, (first, second), reading)
    if side == "tie" and reading.ties == "drop":
        _ = row.get(first), row.get(second)  # marks the columns as used, so that they do not count as misspelt
        raise Drop("tie")
    weight, probability, margin_column = judgement_numbers(row)
    probability = 0.5 if side == "tie" else probability
    if reading.margin_from_scores and not margin:
        raise BadRow(f"data.margin_from_scores needs scores of both responses, or {' or '.join(STRENGTHS)}")
    if not reading.margin_from_scores:
        margin = margin_column
    better = int(side == "b")
    judgement = Judgement(better, 1 - better, weight, probability, margin)
    prompt, response_a, response_b = _texts(row, first, second)
    return two_response_group(prompt, (response_a, response_b), judgement)


def _verdict(row: Fields, sides: tuple[str, str], reading: Reading) -> tuple[str, float]:
    """Return "a", "b" or "tie", and the margin. Raises BadRow if the scores contradict the verdict."""
    key = _verdict_by_aspect(row, reading.aspect) or verdict_column(row)
    scored, lead = _better_by_score(row)
    if key is None and row.keys() >= ONE_HOT.keys():
        marked = [side for name, side in ONE_HOT.items() if normalise(row[name]) in ("1", "true")]
        if len(marked) != 1:
            raise BadRow(f"exactly one of the columns {', '.join(ONE_HOT)} must be 1")
        return marked[0], 0.0
    if key is None and scored:
        return scored, lead
    if key is None and (names := annotator_columns(row)):
        return _majority([row.get(name) for name in names if peek(row, name) != ""], names[0], sides, reading), 0.0
    key = key or "winner"
    value = get(row, key)
    if isinstance(value, list | dict):
        return _majority(verdict_of(row, key), key, sides, reading), 0.0
    if key in STRENGTHS and not reading.winner_values:
        strength = number(row, key, 0.0)
        return ("tie" if strength == 0 else "a" if strength < 0 else "b"), abs(strength)
    side = _by_model(value, row) or _alpaca_eval(value, row) or _side(value, key, sides, reading)
    if {side, scored} == {"a", "b"}:
        pair = score_columns(row) or ("", "")
        raise BadRow(
            f"column {key!r} and the scores {pair[0]!r} and {pair[1]!r} name different responses as the better one",
            fix=f"to use {key!r}, set data.ignore=[{', '.join(pair)}]; to use the scores, set data.ignore=[{key}]; to "
            "drop such rows, set data.bad_rows=drop",
        )
    return side, lead if side == scored else 0.0


def _majority(value: Any, key: str, sides: tuple[str, str], reading: Reading) -> str:
    """Return the side that most annotators prefer, or "tie" (a question of Argilla)."""
    verdicts = [_side(verdict, key, sides, reading) for verdict in submitted(value, key)]
    if not verdicts:
        raise Drop("no annotator has judged the row")
    lead = verdicts.count("a") - verdicts.count("b")
    return "a" if lead > 0 else "b" if lead < 0 else "tie"


def _verdict_by_aspect(row: Fields, aspect: str) -> str:
    """Return the column of the verdict in rows of PKU-SafeRLHF, which have two. Raises BadRow if it must be chosen."""
    if not {BETTER, SAFER} <= row.keys():
        return ""
    verdicts = row.get(BETTER), row.get(SAFER)
    if aspect in ("helpful", "safe"):
        return BETTER if aspect == "helpful" else SAFER
    if verdicts[0] != verdicts[1]:
        raise BadRow(
            f"{BETTER!r} and {SAFER!r} prefer different responses",
            fix="set data.aspect=helpful to prefer the more helpful response, or data.aspect=safe for the safer one",
        )
    return BETTER


def _better_by_score(row: Fields) -> tuple[str, float]:
    """Return the side with the higher score and the difference, or ("", 0) if a score is missing."""
    names = score_columns(row)
    if names is None or any(as_number(peek(row, name)) is None for name in names):
        return "", 0.0
    first, second = (number(row, name, 0.0) for name in names)
    return ("tie" if first == second else "a" if first > second else "b"), abs(first - second)


def _by_model(value: Any, row: Fields) -> str:
    """Return the side whose model has this name, or "" if the row does not name two different models."""
    names = [peek(row, "model_a"), peek(row, "model_b")]
    if not isinstance(value, str) or names.count(value) != 1:
        return ""
    return "ab"[[row.get("model_a"), row.get("model_b")].index(value)]


def _alpaca_eval(value: Any, row: Fields) -> str:
    """Return the side of a weighted preference between 1 (the first output) and 2 of AlpacaEval, or "" for others."""
    preference = as_number(value)
    if preference is None or preference.is_integer() or not 1 < preference < 2:
        return ""
    if not {"generator_1", "generator_2"} <= row.keys():
        return ""
    return "tie" if preference == 1.5 else "a" if preference < 1.5 else "b"


def _texts(row: Fields, first: str, second: str) -> tuple[Text, Text, Text]:
    """Return the prompt and the two responses."""
    a, b = text_of(row, first), text_of(row, second)
    if row.keys() >= ONE_HOT.keys() and (turns := _turn_lists(row, first, second)):
        a, b = turns
    if not isinstance(a, str) and not isinstance(b, str) and min(len(a), len(b)) > 1:
        n = prompt_turn_count(a, b)
        return add_context(row, a[:n]), response_turns(a[n:]), response_turns(b[n:])
    if prompt_column(row) is None and isinstance(a, str) and isinstance(b, str):
        n = common_prefix_length(a, b)
        return add_context(row, a[:n]), a[n:], b[n:]
    prompt = prompt_of(row)
    if isinstance(prompt, str) and not (isinstance(a, str) and isinstance(b, str)):
        prompt = (Message("user", prompt),)
    a, b = (side if isinstance(side, str) else response_turns(side) for side in (a, b))
    return prompt, a, b


def _turn_lists(row: Fields, first: str, second: str) -> tuple[Text, Text] | None:
    """Return the two dialogues of a row whose prompt and responses are JSON lists of turns, or None (Arena, Kaggle)."""
    cells = [row.get("prompt"), row.get(first), row.get(second)]
    try:
        lists: list[Any] = [json.loads(cell) if isinstance(cell, str) else cell for cell in cells]
    except ValueError:
        return None
    if not all(isinstance(turns, list) and len(turns) == len(lists[0]) for turns in lists) or not lists[0]:
        return None
    questions, *answered = [[str(turn or "") for turn in turns] for turns in lists]
    sides = []
    for answers in answered:
        turns = [message for pair in zip(questions, answers, strict=True) for message in pair]
        sides.append(messages_of(alternating(turns), "prompt"))
    return sides[0], sides[1]


def _side(value: Any, key: str, sides: tuple[str, str], reading: Reading) -> str:
    """Return the side that a verdict names: "a", "b" or "tie". Raises BadRow if the verdict is unknown."""
    word = normalise(value)
    if word in reading.winner_values:
        return str(reading.winner_values[word])
    if str(value) in _names(sides, reading):
        return "ab"[_names(sides, reading).index(str(value))]
    if word in TIES:
        return "tie"
    if not reading.winner_values and word in ("a", "b"):
        return word
    raise BadRow(
        f"column {key!r} must say which response is better, not {value!r}",
        fix="set data.winner_values={a: VALUE, b: VALUE, tie: VALUE}",
    )


def _names(sides: tuple[str, str], reading: Reading) -> list[str]:
    """Return the names that the columns of the two responses have in the file."""
    return [reading.columns.get(side, side).rpartition(".")[2] for side in sides]


def with_winner_values(rows: Iterable[Fields], reading: Reading, where: str) -> Reading:
    """Return `reading` with the meaning of each number in the verdict column, inferred from all rows.

    Raises DataError if the meaning of the numbers is ambiguous.
    """
    if reading.winner_values:
        return replace(reading, winner_values=sides_by_value(reading.winner_values))
    values: set[str] = set()
    sides, key = SIDES[0], "winner"
    for row in rows:
        key, sides = verdict_column(row) or key, response_columns(row) or sides
        names = [] if verdict_column(row) else annotator_columns(row)
        key = names[0] if names else key
        cells = [row[name] for name in names] or [verdict_of(row, key)]
        for value in cells if key not in STRENGTHS else ():
            with suppress(BadRow):  # reported when the row is parsed
                verdicts = submitted(value, key) if isinstance(value, list | dict) else [value]
                values |= {normalise(verdict) for verdict in verdicts if verdict not in (None, *_names(sides, reading))}
    numbers = {word for word in values if re.fullmatch(r"-?\d+", word)}
    if not numbers:
        return reading
    if sides == ("human_ref_A", "human_ref_B"):  # SHP: 1 means that A is better
        return replace(reading, winner_values={"1": "a", "0": "b"})
    digits = tuple(match[0] if (match := re.search(r"\d+$", side)) else "" for side in sides)
    if digits[0] and numbers <= set(digits):
        return replace(reading, winner_values={digits[0]: "a", digits[1]: "b"})
    if not digits[0] and key in INDEX_COLUMNS:
        for pair in (("0", "1"), ("1", "2")):
            if numbers <= set(pair) and (numbers - {"1"}):
                return replace(reading, winner_values={pair[0]: "a", pair[1]: "b"})
    raise DataError(
        f"column {key!r} has the values {', '.join(sorted(numbers))}, and it is not clear which response each means",
        where=where,
        why=f"the responses are {sides[0]!r} and {sides[1]!r}",
        fix=winner_values_fix(numbers),
    )


def sides_by_value(winner_values: Mapping[str, Any]) -> dict[str, str]:
    """Invert {a: VALUE, b: VALUE, tie: VALUE or a list of values}. Raises ConfigError for a duplicate value."""
    sides: dict[str, str] = {}
    for side, values in winner_values.items():
        if side not in ("a", "b", "tie"):
            fix = f"use a, b and tie; {did_you_mean(side, ('a', 'b', 'tie'))}"
            raise ConfigError(f"unknown side {side!r}", where="data.winner_values", fix=fix)
        for value in values if isinstance(values, list) else [values]:
            if sides.setdefault(normalise(value), side) != side:
                raise ConfigError(f"{value!r} has two meanings", where="data.winner_values", fix="list it once")
    return sides


def summaries(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse two summaries and the index of the better one (openai/summarize_from_feedback, config `comparisons`)."""
    info, items = get(row, "info"), get(row, "summaries")
    if not isinstance(info, dict) or not isinstance(items, list) or len(items) != 2:
        raise BadRow(
            f"'info' must be an object and 'summaries' a list of two, not {kind_name(info)} and {kind_name(items)}"
        )
    choice = normalise(get(row, "choice"))
    if choice not in ("0", "1"):
        raise BadRow(f"column 'choice' must be 0 or 1, not {row['choice']!r}")
    first, second = (string(item if isinstance(item, dict) else {}, "text") for item in items)
    judgement = Judgement(int(choice), 1 - int(choice))
    return two_response_group(text_to_summarise(info), (first, second), judgement)


def text_to_summarise(info: Fields) -> str:
    """Return the prompt for a summary of a Reddit post, or of an article of CNN and the Daily Mail."""
    if not info.get("post") and not info.get("article"):
        raise BadRow("column 'info' has neither a post nor an article to summarise")
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("ARTICLE: ", "article")]
    lines = [lead + require_utf8(str(info[key]), f"info.{key}") for lead, key in parts if info.get(key)]
    return "\n\n".join([*lines, "TL;DR:"])
