"""The options for reading rows, and the parsers for groups of any size: rankings and preftune's own format.

The parsers for pairs are in parse_pairs, for votes in parse_votes, for single responses in parse_sft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, Literal

from preftune.errors import did_you_mean
from preftune.formats.column_roles import COMPLETIONS, prompt_of
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    annotations_of,
    as_number,
    comparable,
    ended_flags,
    get,
    is_empty,
    kind_name,
    message_of,
    messages_of,
    peek,
    require_utf8,
    required_number,
    response_of,
    response_turns,
    text_of,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text

Pairing = Literal["all", "best-worst", "adjacent"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for reading rows. See the sections `data` in config.schema and config.sampling for their meaning.

    drop     origins of rows to leave out
    as_chat  True: convert all text prompts to messages; "transcripts": those that are HH-RLHF transcripts
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    pairs: Pairing = "all"
    margin_from_scores: bool = False
    as_chat: bool | Literal["transcripts"] = False
    allow_empty_prompts: bool = False
    bad_rows: Literal["error", "drop"] = "error"
    winner_values: Mapping[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    aspect: str = ""
    ties: Literal["drop", "half"] = "drop"
    scored_turns: Literal["all", "last"] = "all"
    limit: int | None = None
    drop: tuple[str, ...] = ()


def group_of(prompt: Text, responses: Sequence[Text], **annotations: Any) -> PreferenceGroup:
    """Return a group of texts only or chats only. A chat response begins and ends with an assistant message.

    Raises Drop for other responses, and if fewer than two responses (or the only one) are not empty. Other empty
    responses remain; values.drop_empty_responses removes them later, where they are counted.
    """
    if isinstance(prompt, str) and not all(isinstance(r, str) for r in responses):
        prompt = (Message("user", prompt),)
    if not isinstance(prompt, str):
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    responses = [r if isinstance(r, str) else response_turns(r) for r in responses]
    if sum(not is_empty(r) for r in responses) < min(2, len(responses)):
        raise Drop("empty response")
    return PreferenceGroup(prompt, tuple(responses), **annotations)


def judgements_from_scores(scores: Sequence[float], reading: Reading) -> tuple[Judgement, ...]:
    """Pair responses by their scores (higher is better), as `reading.pairs` says, and `reading.ties` for equal ones."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if reading.pairs == "best-worst":
        pairs = [(order[0], order[-1])]
    elif reading.pairs == "adjacent":
        pairs = list(pairwise(order))
    else:
        pairs = list(combinations(order, 2))
    return tuple(
        Judgement(
            b,
            w,
            probability=1.0 if scores[b] > scores[w] else 0.5,
            margin=scores[b] - scores[w] if reading.margin_from_scores else 0.0,
        )
        for b, w in pairs
        if scores[b] > scores[w] or reading.ties == "half"
    )


RESPONSE_LISTS = ("responses", "completions", "answers", "outputs")
TEXT_FIELDS = ("text", "content", "response", "answer", "completion", "output")
OTHER_FIELDS = ("reasoning_content", "reasoning", "thinking", "tool_calls")  # parts of a response besides its text
RATINGS = ("annotations", "scores", "ratings")  # fields with several ratings of a response
SCORES = ("score", "overall_score", "rating", "reward", "pm_score")


def ranked(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse several responses, each with a rank (lower is better) or a score (higher is better)."""
    prompt = prompt_of(row)
    key = next((key for key in RESPONSE_LISTS if key in row), None)
    if key is None:
        what = f"the row has no column with a list of responses ({', '.join(RESPONSE_LISTS)})"
        raise BadRow(f"{what}; {did_you_mean(RESPONSE_LISTS[0], row)}")
    items, responses = _responses(row, key)
    return _ranked_group(row, prompt, responses, _item_scores(row, items, key, reading.aspect), reading)


def ordered(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a list of responses in order, the best one first. Only data.format=ordered says that a list is in order."""
    keys = (*RESPONSE_LISTS, *COMPLETIONS)
    key = next((key for key in keys if isinstance(peek(row, key), list)), RESPONSE_LISTS[0])
    _, responses = _responses(row, key)
    return _ranked_group(row, prompt_of(row), responses, [-float(n) for n in range(len(responses))], reading)


def _responses(row: Fields, key: str) -> tuple[list[Any], list[Text]]:
    """Return the items of a list of responses, and the responses in them."""
    items = get(row, key)
    if not isinstance(items, list):
        raise BadRow(f"column {key!r} must be a list, not {kind_name(items)}")
    if len(items) < 2:
        raise Drop("fewer than two responses")
    return items, [_response(item, f"{key}[{i}]") for i, item in enumerate(items)]


def _ranked_group(
    row: Fields, prompt: Text, responses: list[Text], scores: Sequence[float], reading: Reading
) -> list[PreferenceGroup]:
    """Return one group of responses with scores (higher is better)."""
    non_empty = [i for i, response in enumerate(responses) if not is_empty(response)]
    if len(non_empty) < 2:
        raise Drop("empty response")
    paired = judgements_from_scores([scores[i] for i in non_empty], reading)
    judgements = [replace(j, better=non_empty[j.better], worse=non_empty[j.worse]) for j in paired]
    distinct = tuple(j for j in judgements if comparable(responses[j.better]) != comparable(responses[j.worse]))
    if not judgements:
        raise Drop("tied scores")
    if not distinct:
        raise Drop("identical responses")
    ranks = tuple(1.0 + sum(other > score for other in scores) for score in scores)
    return [group_of(prompt, responses, judgements=distinct, ranks=ranks, ended=ended_flags(row, len(responses)))]


def _response(item: Any, where: str) -> Text:
    if isinstance(item, str):
        return require_utf8(item, where)
    if isinstance(item, list):
        return response_turns(messages_of(item, where))
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be text or an object, not {kind_name(item)}")
    if "role" in item:
        return response_turns((message_of(item, where),))
    filled = [key for key in TEXT_FIELDS if item.get(key) not in (None, "")]
    others = [key for key in OTHER_FIELDS if item.get(key)]
    if len({repr(item[key]) for key in filled}) > 1 or others:
        what = f"{where} has text in the fields {', '.join(filled + others)}, but only one field can be the response"
        raise BadRow(what, fix="write each response as a list of one message, with its other fields in the message")
    key = next((key for key in filled or TEXT_FIELDS if key in item), None)
    if key is None:
        raise BadRow(f"{where} has none of the fields {', '.join(TEXT_FIELDS)}")
    return response_of(item, key)


def _item_scores(row: Fields, items: list[Any], key: str, aspect: str) -> list[float]:
    """Return a score per item, from a list in the row or from a field of the items. Ranks are negated.

    An `aspect` is a field of the items, or the name of an annotation with a `Rating` (openbmb/UltraFeedback).
    """
    if aspect and not isinstance(row.get("scores"), list):
        return [_rating(item, aspect, f"{key}[{i}]") for i, item in enumerate(items)]
    for name, sign in (("scores", 1.0), ("rewards", 1.0), ("ranks", -1.0)):
        if isinstance(row.get(name), list):
            values = row[name]
            if len(values) != len(items):
                raise BadRow(f"{name!r} has {len(values)} entries for {len(items)} {key}")
            return [sign * required_number({name: v}, name, f"{name}[{i}]") for i, v in enumerate(values)]
    for name, sign in (("rank", -1.0), *((name, 1.0) for name in SCORES)):
        if all(isinstance(item, dict) and name in item for item in items):
            return [sign * required_number(item, name, f"{key}[{i}].{name}") for i, item in enumerate(items)]
    if isinstance(peek(row, "labels"), list):
        raise BadRow(
            f"column 'labels' has a label for each of the {key}, which are the steps of one response, or good and bad "
            "responses",
            fix="preftune does not train on labels of steps; for good and bad responses, write one row for each, with "
            "the columns prompt, completion and label",
        )
    aspects = [name for name in RATINGS if isinstance(items[0], dict) and isinstance(items[0].get(name), dict)]
    if aspects:
        what = f"the {key} have several ratings"
        raise BadRow(what, fix=f"set data.aspect to one of {', '.join(items[0][aspects[0]])}")
    lists = [name for name in row if name != key and isinstance(peek(row, name), list)]
    numbers = [name for name in lists if [as_number(v) is not None for v in peek(row, name)] == [True] * len(items)]
    fix = (
        "set data.columns={scores: COLUMN} (higher is better) or {ranks: COLUMN} (lower is better); or, if they are "
        "in order, the best one first, data.format=ordered"
    )
    fields = [name for name in items[0] if as_number(items[0][name]) is not None] if isinstance(items[0], dict) else []
    if fields:
        fix = f"if a field of the {key} rates them (higher is better), set data.aspect to one of {', '.join(fields)}"
    raise BadRow(
        f"not all {key} have a rank or a score, so they cannot be compared",
        fix=fix.replace("COLUMN", numbers[0]) if len(numbers) == 1 else fix,
    )


def _rating(item: Any, aspect: str, where: str) -> float:
    fields = item if isinstance(item, dict) else {}
    annotations: Any = next((fields[key] for key in RATINGS if isinstance(fields.get(key), dict)), {})
    annotation = annotations.get(aspect)
    rating = annotation.get("Rating") if isinstance(annotation, dict) else annotation
    if aspect in fields:
        return required_number(fields, aspect, f"{where}.{aspect}")
    if as_number(rating) is None:
        names = [name for name, value in fields.items() if as_number(value) is not None]
        what = f"{where} has no rating {aspect!r} (data.aspect)"
        raise BadRow(what, fix=f"set data.aspect to one of {', '.join([*annotations, *names]) or 'its ratings'}")
    return required_number({"Rating": rating}, "Rating", f"{where}.annotations.{aspect}.Rating")


def groups(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse the format that `preftune data convert --to groups` writes."""
    responses = get(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise BadRow("column 'responses' must be a non-empty list")
    names = [f"responses[{i}]" for i in range(len(responses))]
    texts = [text_of({name: response}, name) for name, response in zip(names, responses, strict=True)]
    get(row, "judgements")
    return [group_of(prompt_of(row), texts, **annotations_of(row, len(texts)))]
