"""How rows are read, and the parsers for groups of any size: rankings and preftune's own groups.

The parsers of pairs are in parse_pairs, of votes in parse_votes, of single responses in parse_sft. Each is called with
a row that its format fits, or was named for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, Literal

from preftune.errors import did_you_mean
from preftune.formats.slots import prompt_of
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    answer_of,
    as_number,
    clean,
    flags_of,
    get,
    is_empty,
    kind_name,
    knowledge_of,
    message_of,
    messages_of,
    one_turn,
    peek,
    required_number,
    text_of,
    words_of,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text

Pairing = Literal["all", "best-worst", "adjacent"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read, from the config (sections `data` of config.schema and config.sampling)."""

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    pairs: Pairing = "all"
    margin_from_scores: bool = False
    as_chat: bool = False
    allow_empty_prompts: bool = False
    bad_rows: Literal["error", "drop"] = "error"
    winner_values: Mapping[str, Any] = field(default_factory=dict)


def group_of(prompt: Text, responses: Sequence[Text], **more: Any) -> PreferenceGroup:
    """A group whose text and chat parts agree: a chat prompt has chat responses of one message by the assistant.

    Raises Drop for other responses.
    One empty response of several may stay, it is left out later (values.without_empty), where it can be counted.
    """
    if not isinstance(prompt, str):
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    elif not all(isinstance(r, str) for r in responses):
        prompt = (Message("user", prompt),)
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    responses = [r if isinstance(r, str) else one_turn(r) for r in responses]
    full = sum(not is_empty(r) for r in responses)
    if full < min(2, len(responses)):
        raise Drop("empty response")
    return PreferenceGroup(prompt, tuple(responses), **more)


def judge(scores: Sequence[float], reading: Reading) -> tuple[Judgement, ...]:
    """Judgements between responses with these scores (higher is better), by the pairing of `reading`; no ties."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if reading.pairs == "best-worst":
        chosen = [(order[0], order[-1])]
    elif reading.pairs == "adjacent":
        chosen = list(pairwise(order))
    else:
        chosen = list(combinations(order, 2))
    return tuple(
        Judgement(b, w, margin=scores[b] - scores[w] if reading.margin_from_scores else 0.0)
        for b, w in chosen
        if scores[b] > scores[w]
    )


LISTS = ("responses", "completions", "answers", "outputs")
WORDS = ("text", "content", "response", "answer", "completion", "output")
UNSCORED = ("reasoning_content", "reasoning", "thinking", "tool_calls")  # words of a response, outside its text
SCORES = ("score", "overall_score", "rating", "reward", "pm_score")


def ranked(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """n responses with a rank (lower is better) or a score (higher is better) each."""
    prompt = prompt_of(row)
    key = next((key for key in LISTS if key in row), None)
    if key is None:
        raise BadRow(f"no column with a list of responses ({', '.join(LISTS)}); {did_you_mean(LISTS[0], row)}")
    items = get(row, key)
    if not isinstance(items, list):
        raise BadRow(f"column {key!r} must be a list, not {kind_name(items)}")
    if len(items) < 2:
        raise Drop("fewer than two responses")
    responses = [_response(item, f"{key}[{i}]") for i, item in enumerate(items)]
    scores = _item_scores(row, items, key)
    full = [i for i, response in enumerate(responses) if not is_empty(response)]
    if len(full) < 2:
        raise Drop("empty response")
    found = judge([scores[i] for i in full], reading)
    judgements = [replace(j, better=full[j.better], worse=full[j.worse]) for j in found]
    distinct = tuple(j for j in judgements if words_of(responses[j.better]) != words_of(responses[j.worse]))
    if not judgements:
        raise Drop("tied scores")
    if not distinct:
        raise Drop("identical responses")
    ranks = tuple(1.0 + sum(other > score for other in scores) for score in scores)
    return [group_of(prompt, responses, judgements=distinct, ranks=ranks, ended=flags_of(row, len(items)))]


def _response(item: Any, where: str) -> Text:
    if isinstance(item, str):
        return clean(item, where)
    if isinstance(item, list):
        return one_turn(messages_of(item, where))
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be text or an object, not {kind_name(item)}")
    if "role" in item:
        return one_turn((message_of(item, where),))
    told = [key for key in WORDS if item.get(key) not in (None, "")]
    lost = [key for key in UNSCORED if item.get(key)]
    if len({repr(item[key]) for key in told}) > 1 or lost:
        what = f"{where} has text in the fields {', '.join(told + lost)}, and only one of them can be the response"
        raise BadRow(what, fix="write each response as a list of one message, with its other fields in the message")
    key = next((key for key in told or WORDS if key in item), None)
    if key is None:
        raise BadRow(f"{where} has none of the fields {', '.join(WORDS)}")
    return answer_of(item, key)


def _item_scores(row: Fields, items: list[Any], key: str) -> list[float]:
    for name, sign in (("scores", 1.0), ("rewards", 1.0), ("ranks", -1.0)):
        if isinstance(row.get(name), list):
            values = row[name]
            if len(values) != len(items):
                raise BadRow(f"{name!r} has {len(values)} entries for {len(items)} {key}")
            return [sign * required_number({name: v}, name, f"{name}[{i}]") for i, v in enumerate(values)]
    for name, sign in (("rank", -1.0), *((name, 1.0) for name in SCORES)):
        if all(isinstance(item, dict) and name in item for item in items):
            return [sign * required_number(item, name, f"{key}[{i}].{name}") for i, item in enumerate(items)]
    lists = [name for name in row if name != key and isinstance(peek(row, name), list)]
    numbers = [name for name in lists if [as_number(v) is not None for v in peek(row, name)] == [True] * len(items)]
    fix = "name the column with a number for each: data.columns={scores: COLUMN} (higher is better) or {ranks: COLUMN}"
    raise BadRow(
        f"no rank or score for every one of the {key}: none is better than another",
        fix=fix.replace("COLUMN", numbers[0]) if len(numbers) == 1 else fix,
    )


def groups(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """The format that `data convert --to groups` writes."""
    responses = get(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise BadRow("column 'responses' must be a list that is not empty")
    names = [f"responses[{i}]" for i in range(len(responses))]
    texts = [text_of({name: response}, name) for name, response in zip(names, responses, strict=True)]
    get(row, "judgements")
    return [group_of(prompt_of(row), texts, **knowledge_of(row, len(texts)))]
