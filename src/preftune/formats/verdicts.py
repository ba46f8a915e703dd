"""Find the verdict of a row with two responses, and read the words and numbers that verdicts are written in."""

from __future__ import annotations

import re
from typing import Any

from preftune.formats.values import BadRow, Fields, as_number, peek

#: Columns of the two responses. If the names end with numbers, a verdict that is such a number names the response.
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
#: Other names of the two responses: conv_A and conv_B, summary1 and summary2, "Model answer left", ...
SIDE_NAME = re.compile(
    r"(?P<stem>.*(?:response|answer|completion|output|conversation|conv|generation|reply|summary|translation|candidate)"
    r"s?[ _-]?)(?P<side>[abc]|left|right|[0-9])",
    re.IGNORECASE,
)
SIDE_PAIRS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
#: Below 0, the first response is better by that amount; above 0, the second one; 0 is a tie.
STRENGTHS = ("preference_strength", "overall_preference")
VERDICTS = ("winner", "better_response_id", "safer_response_id", *STRENGTHS, "preference", "preferred", "choice",
            "label", "labels")  # fmt: skip
#: Columns with the verdict of one annotator each: annotator1, annotator2, ... (PandaLM)
ANNOTATOR = re.compile(r"(annotator|annotation|rater|judge|evaluator|vote|verdict|preference)[ _-]?[0-9]+", re.I)
KINDS_OF_SCORE = ("score", "rating", "reward", "votes", "upvotes", "wins")
TIES = (
    *("tie", "tied", "tie (bothbad)", "tie (both bad)", "both", "bothbad", "both bad", "both_bad", "both good", "draw"),
    *("equal", "equally good", "equally bad", "same", "about the same", "neither", "no preference", "neutral", "a=b"),
    *("gleich", "beide gleich", "unentschieden", "égalité", "empate", "ничья", "平局", "平手"),
)
SIDE_WORDS = {"a": "a", "first": "a", "left": "a", "b": "b", "second": "b", "right": "b"}
RESPONSE = r"(?:model|response|answer|assistant|completion|output|generation|summary|option)"
MUCH = r"(?:much|slightly|clearly|significantly|strongly|somewhat)"
#: "A", "response A", "A is slightly better", "A-is-clearly-better", "left wins", "strongly prefer A", ...
NAMED_SIDE = re.compile(
    rf"(?:{MUCH}[ _-])?(?:prefers?[ _-])?(?:{RESPONSE}[ _-]?)?(?P<side>[ab]|\d|left|right|first|second)"
    rf"(?:[ _-]{RESPONSE})?(?:[ _-](?:is|was))?(?:[ _-]{MUCH})?(?:[ _-](?:better|best|preferred|wins|won))?"
)
COMPARED = re.compile(r"\[*(?P<first>[ab]) ?(?P<sign>>+|<+) ?(?P<second>[ab])\]*")


def response_columns(row: Fields) -> tuple[str, str] | None:
    """Return the columns of the two responses, or None."""
    exact = next((sides for sides in SIDES if sides[0] in row and sides[1] in row), None)
    if exact:
        return exact
    sides: dict[str, dict[str, str]] = {}
    for key in row:
        if match := SIDE_NAME.fullmatch(key):
            sides.setdefault(match["stem"].lower(), {})[match["side"].lower()] = key
    pairs = [
        (names[first], names[second])
        for names in sides.values()
        for first, second in SIDE_PAIRS
        if names.keys() == {first, second}
    ]
    return pairs[0] if len(pairs) == 1 else None


def score_columns(row: Fields) -> tuple[str, str] | None:
    """Return the columns with the scores of the two responses (score_a, score_b for answer_a, answer_b), or None."""
    sides = response_columns(row) or SIDES[0]
    suffixes = [re.split(r"(?=[^_-]$)", side)[-1] for side in sides]
    names = [(f"{kind}_{suffixes[0]}", f"{kind}_{suffixes[1]}") for kind in KINDS_OF_SCORE]
    names += [(f"{sides[0]}_{kind}", f"{sides[1]}_{kind}") for kind in KINDS_OF_SCORE]
    return next((pair for pair in names if pair[0] in row and pair[1] in row), None)


def verdict_column(row: Fields) -> str | None:
    """Return the column that says which response is better, or None."""
    return next((key for key in VERDICTS if key in row), None) or _argilla_question(row)


def _argilla_question(row: Fields) -> str | None:
    """Return the column with the answers to the only question of an export of Argilla 2, or None."""
    questions = [key for key in row if key.endswith(".responses") and f"{key}.status" in row]
    return questions[0] if len(questions) == 1 else None


def verdict_of(row: Fields, key: str) -> Any:
    """Return the value of a verdict column. Answers in an export of Argilla 2 are returned with their statuses."""
    value = row.get(key)
    if not key.endswith(".responses") or not isinstance(value, list):
        return value
    statuses = row.get(f"{key}.status")
    _ = row.get(f"{key}.users")  # marks the column as used
    statuses = statuses if isinstance(statuses, list) and len(statuses) == len(value) else ["submitted"] * len(value)
    return [{"value": item, "status": status} for item, status in zip(value, statuses, strict=True)]


def annotator_columns(row: Fields) -> list[str]:
    """Return the columns with the verdict of one annotator each, or [] if there are fewer than two."""
    names = [key for key in row if ANNOTATOR.fullmatch(key) and isinstance(peek(row, key), str | int | float)]
    return names if len(names) > 1 else []


def submitted(value: Any, key: str) -> list[Any]:
    """Return the verdicts of annotators, without those that were not submitted.

    A list of verdicts, a list of {"user_id", "value", "status"} as Argilla exports it, or one object with a list for
    each of these names. A value may be a ranking {"rank": [1, 2], "value": ["response-1", "response-2"]}.
    """
    if isinstance(value, dict) and isinstance(value.get("value"), list) and "rank" not in value:
        names = [name for name in ("value", "status") if isinstance(value.get(name), list)]
        value = [dict(zip(names, items, strict=False)) for items in zip(*(value[name] for name in names), strict=False)]
    items = value if isinstance(value, list) else [value]
    items = [{"value": item} if isinstance(item, str | int | float) else item for item in items]
    if not all(isinstance(item, dict) and "value" in item for item in items):
        what = f"column {key!r} must be a verdict, or a list of verdicts of annotators with the field 'value'"
        raise BadRow(what, fix="write the name of the better response into the column")
    return [
        first_of(item["value"], item.get("rank"), key)
        for item in items
        if item["value"] is not None and str(item.get("status") or "submitted") == "submitted"
    ]


def first_of(value: Any, ranks: Any, key: str) -> Any:
    """Return the best value of a ranking, "tie" for several, and any other value unchanged."""
    if isinstance(value, dict) and "rank" in value:
        value, ranks = value.get("value"), value["rank"]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):  # [{"value": "a", "rank": 1}, ...]
        value, ranks = [item.get("value") for item in value], [item.get("rank") for item in value]
    if not isinstance(value, list):
        return value
    ordered = [as_number(rank) for rank in (ranks if isinstance(ranks, list) else ())]
    if not value or len(ordered) != len(value) or None in ordered:
        raise BadRow(f"column {key!r} has a ranking that is not a list of values with a rank each")
    best = [one for one, rank in zip(value, ordered, strict=True) if rank == min(map(float, ordered))]  # type: ignore[arg-type]
    return best[0] if len(best) == 1 else "tie"


def normalise(value: Any) -> str:
    """Normalise a verdict: 1, 1.0, "1" and "model_1" become "1"; "A", "model_a" and "A>>B" become "a"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    word = str(value).strip().lower()
    if compared := COMPARED.fullmatch(word):
        return compared["first" if compared["sign"].startswith(">") else "second"]
    if named := NAMED_SIDE.fullmatch(word):
        return SIDE_WORDS.get(named["side"], named["side"])
    return word.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", word) else word


def winner_values_fix(numbers: set[str]) -> str:
    """Suggest the setting data.winner_values for numbers whose meaning is unclear."""
    values = sorted(map(int, numbers))
    low, high = values[0], values[-1]
    if len(values) < 3:
        high = low + 1 if low == high else high
        return f"say what the values mean, for example data.winner_values={{a: {low}, b: {high}}}"
    if values == [0, 1, 2]:
        return "say what the values mean, for example data.winner_values={a: 1, b: 2, tie: 0} or {a: 0, b: 1, tie: 2}"
    first = [value for value in range(low, high + 1) if 2 * value < low + high]
    middle = f", tie: {(low + high) // 2}" if (low + high) % 2 == 0 else ""
    second = [value for value in range(low, high + 1) if 2 * value > low + high]
    return (
        f"if low values mean that the first response is better, set data.winner_values={{a: {first}{middle}, "
        f"b: {second}}}; if high values do, swap the two lists"
    )
