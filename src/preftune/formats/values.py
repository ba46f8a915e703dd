"""Read and check the values of a row: texts, numbers, messages, responses and judgements."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from numbers import Integral
from reprlib import repr as brief
from typing import Any

from preftune.errors import did_you_mean
from preftune.formats.exchanges import exchanges_of
from preftune.types import Judgement, Message, PreferenceGroup, Text

Fields = dict[str, Any]
LARGEST = 1e38  # the difference of two numbers up to this is finite in fp32


class BadRow(Exception):
    """The row breaks its format. `fix` says what to do about it, if that is known."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.fix = fix


class Drop(Exception):
    """The row cannot be trained on. The text is the reason under which it is counted."""


def is_messages(value: Any) -> bool:
    """Return whether a value is a non-empty list of objects, as a dialogue is."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) for m in value)


def peek(row: Fields, key: str) -> Any:
    """Return the value of a column, or None, without marking the column of a TrackedRow as used."""
    return dict.get(row, key)


def is_blank(value: Any) -> bool:
    """Return whether a value is null, empty text, or a list or object (even as JSON text) of only such values."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return value is None or (items is not None and all(map(is_blank, items)))


def get(row: Fields, key: str) -> Any:
    """Return the value of a column. Raises BadRow if it is missing or null."""
    if key not in row:
        raise BadRow(f"column {key!r} is missing; {did_you_mean(key, row)}")
    if row[key] is None:
        raise BadRow(f"column {key!r} is null")
    return row[key]


def string(row: Fields, key: str) -> str:
    """Return the text of a column. Raises BadRow for other types."""
    value = get(row, key)
    if not isinstance(value, str):
        raise BadRow(f"column {key!r} must be text, not {kind_name(value)}")
    return require_utf8(value, key)


def require_utf8(text: str, key: str) -> str:
    """Return `text`, or raise BadRow if it cannot be encoded as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"column {key!r} contains a lone surrogate at character {error.start}") from None
    return text


def kind_name(value: Any) -> str:
    """Return the name of a value's type for messages."""
    names = {dict: "an object", list: "a list", bool: "true/false", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def number(row: Fields, key: str, default: float, where: str = "") -> float:
    """Return a finite number, or `default` if the column is absent or empty."""
    where = where or f"column {key!r}"
    value = row.get(key)
    if isinstance(value, list) and len(value) == 1:  # some data sets write a single number as a list
        value = value[0]
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise BadRow(f"{where} must be a number, not {brief(value)}") from None
    if isinstance(value, bool) or not abs(number) <= LARGEST:
        raise BadRow(f"{where} must be a finite number, not {brief(value)}")
    return number


def as_number(value: Any) -> float | None:
    """Convert a value, such as the text of a CSV cell, to a finite number, or return None."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def required_number(fields: Fields, key: str, where: str) -> float:
    """Return a finite number. Raises BadRow if it is missing."""
    if fields.get(key) is None or fields[key] == "":
        raise BadRow(f"{where} is {'empty' if fields.get(key) == '' else 'null'}")
    return number(fields, key, 0.0, where)


ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user", "assistant":
    "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot":
    "assistant", "ai": "assistant", "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
    "tool_response": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # roles of assistant turns whose text is a tool call as JSON
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "message", "text", "parts")
#: Fields that identify a message without being part of its content; comparisons ignore them.
ID_FIELDS = {"id", "message_id", "parent_id", "uuid", "index", "turn", "date", "timestamp", "created_at", "model"}
INFO_FIELDS = {"name", "tool_call_id", "finish_reason"}  # a turn with only these fields is empty


def message_of(value: Any, key: str) -> Message:
    """Read a message: {"role", "content"}, {"from", "value"} or {"speaker", "message"}.

    The content may be a list of text parts. All other fields that are not null or empty go to Message.extra.
    """
    if not isinstance(value, dict):
        raise BadRow(f"{key} must be a message, not {kind_name(value)}")
    role_key = next((k for k in ROLE_KEYS if value.get(k) is not None), "role")
    content_key = next((k for k in CONTENT_KEYS if value.get(k) is not None), "content")
    rest = {k: v for k, v in value.items() if k not in (role_key, content_key) and v not in (None, "", [], {})}
    role, content = value.get(role_key), value.get(content_key)
    if isinstance(role, str) and role.strip().lower() in CALLS:
        role, content, rest = "assistant", "", rest | {"tool_calls": _calls_of(content, role, key)}
    if role is None:
        fix = 'write messages as {"role": "user", "content": "..."}'
        if isinstance(content, str) and key.isidentifier():  # a response with its scores
            fix += (
                f"; or name the field with the text for each response: data.columns={{{key}: {key}.{content_key}, ...}}"
            )
        raise BadRow(f"{key} has no role", fix=fix)
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise BadRow(
            f"{key} has the unknown role {role!r}; known roles: {', '.join([*ROLES, *CALLS])}",
            fix="rename the role to user, assistant, system or tool",
        )
    if content is None and rest:  # a turn may consist of a tool call or reasoning only
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{key}.{content_key}[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRow(f"the content of {key} must be text, not {kind_name(content)}")
    extra = {name: require_utf8(json.dumps(item, ensure_ascii=False, default=str), key) for name, item in rest.items()}
    return Message(ROLES[role.strip().lower()], require_utf8(content, key), tuple(sorted(extra.items())))


def _part(part: Any, where: str) -> str:
    """Return the text of one part of a message's content."""
    text = part.get("text") if isinstance(part, dict) else part
    others = {k for k, v in part.items() if k not in ("type", "text") and v} if isinstance(part, dict) else set()
    if not isinstance(text, str) or others & {"image", "image_url", "audio", "input_audio", "video"}:
        kind = part.get("type") if isinstance(part, dict) else kind_name(part)
        if "think" in str(kind) or "reason" in str(kind):
            fix = "write the part as text, or drop such rows with data.bad_rows=drop"
        else:
            fix = (
                "preftune trains on text only: remove the rows with such content, or drop them with "
                "data.bad_rows=drop; if all rows have it, use a trainer for multimodal models"
            )
        raise BadRow(f"{where} has content that is not text: {kind!r}", fix=fix)
    return text


def _calls_of(content: Any, role: str, key: str) -> list[dict[str, Any]]:
    """Return the tool calls of a turn with a role of CALLS: JSON {"name", "arguments"}, or a list of such objects."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    if not is_messages(calls) or not all(set(call) == {"name", "arguments"} for call in calls):
        raise BadRow(
            f'{key} has the role {role!r}, but its text is not JSON of the form {{"name": ..., "arguments": ...}}',
            fix="write the turn as an assistant message with the field tool_calls",
        )
    return [{"type": "function", "function": call} for call in calls]


def comparable(text: Text) -> Any:
    """Return a text or chat in a form for comparisons, without fields that have no text or are in ID_FIELDS."""
    if isinstance(text, str):
        return text
    return tuple((m.role, m.content, tuple(e for e in m.extra if e[0] not in ID_FIELDS and '"' in e[1])) for m in text)


def is_empty(text: Text) -> bool:
    """Return whether a text or chat has no text, no tool call and no reasoning."""
    if isinstance(text, str):
        return not text.strip()
    return all(
        not content.strip() and {name for name, _ in extra} <= INFO_FIELDS for _, content, extra in comparable(text)
    )


def has_role(value: Any) -> bool:
    """Return whether a value is an object with a role, as a message is."""
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in ROLE_KEYS)


def is_dialogue(value: Any) -> bool:
    """Return whether a value is a non-empty list of objects with roles, or of exchanges (see `exchanges`)."""
    return is_messages(value) and (all(map(has_role, value)) or exchanges_of(value) is not None)


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """Read a list of messages."""
    if not isinstance(value, list) or not value:
        actual = "an empty list" if value == [] else kind_name(value)
        raise BadRow(f"column {key!r} must be a list of messages, not {actual}")
    if all(isinstance(m, str) for m in value):
        raise BadRow(
            f"column {key!r} must be text or messages, not a list of {len(value)} texts",
            fix="write one text, or messages with role and content; for responses with scores, set "
            f"data.columns={{responses: {key}, scores: COLUMN}}; if they are in order, the best one first, set "
            "data.format=ordered",
        )
    return tuple(message_of(m, f"{key}[{i}]") for i, m in enumerate(exchanges_of(value) or value))


def text_of(row: Fields, key: str) -> Text:
    """Read a column with text, a message or a list of messages."""
    value = get(row, key)
    if isinstance(value, str):
        return require_utf8(value, key)
    if isinstance(value, dict):
        return (message_of(value, key),)
    return messages_of(value, key)


def response_of(row: Fields, key: str) -> Text:
    """Read a response: text or the messages of a response."""
    value = text_of(row, key)
    return value if isinstance(value, str) else response_turns(value)


def response_turns(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages of a response. Raises Drop unless the first and the last one are from the assistant."""
    if not messages:
        raise Drop("no turn after the prompt")
    if messages[0].role != "assistant":
        raise Drop("the response does not begin with an assistant turn")
    if messages[-1].role != "assistant":
        raise Drop("the response does not end with an assistant turn")
    return messages


def judgement_numbers(fields: Fields, where: str = "") -> tuple[float, float, float]:
    """Return weight, probability and margin of a judgement. The caller must check for a weight of 0."""
    names = {key: f"{where}.{key}" if where else f"column {key!r}" for key in ("weight", "probability", "margin")}
    weight = number(fields, "weight", 1.0, names["weight"])
    if weight < 0:
        raise BadRow(f"{names['weight']} must be at least 0, not {weight}")
    probability = number(fields, "probability", 1.0, names["probability"])
    if not 0 <= probability <= 1:
        raise BadRow(f"{names['probability']} must be between 0 and 1, not {probability}")
    return weight, probability, number(fields, "margin", 0.0, names["margin"])


def judgement_of(item: Any, where: str, responses: int) -> Judgement:
    """Read {"better", "worse"} with optional "weight", "probability" and "margin". `responses` is their number."""
    fields = {"better", "worse", "weight", "probability", "margin"}
    if not isinstance(item, dict) or not {"better", "worse"} <= set(item) <= fields:
        raise BadRow(f"{where} must be an object with better and worse, not {brief(item)}")
    sides = [item["better"], item["worse"]]
    if not all(isinstance(k, Integral) and not isinstance(k, bool) and 0 <= int(k) < responses for k in sides):
        what = f"{where} refers to a response that does not exist: {brief(sides)} of {responses}, counted from 0"
        raise BadRow(what)
    if sides[0] == sides[1]:
        raise BadRow(f"{where} says that response {sides[0]} is better than itself")
    weight, probability, margin = judgement_numbers(item, where)
    if weight == 0:
        raise BadRow(f"{where}.weight must be above 0")
    return Judgement(int(sides[0]), int(sides[1]), weight, probability, margin)


def annotations_of(fields: Fields, responses: int) -> dict[str, Any]:
    """Read and check judgements, labels, ranks and ended of a group. `responses` is the number of responses."""
    items = fields.get("judgements")
    if not isinstance(items, list):
        raise BadRow(f"column 'judgements' must be a list, not {kind_name(items)}")
    judgements = tuple(judgement_of(item, f"judgements[{i}]", responses) for i, item in enumerate(items))
    without = [i for i, item in enumerate(items) if item.get("margin") is None]
    if 0 < len(without) < len(items):
        raise BadRow(f"judgements[{without[0]}] has no margin, but other judgements of the row have one")
    labels = _per_response(fields, "labels", responses)
    for i, label in enumerate(labels):
        if isinstance(label, bool) or label not in (1, -1):
            raise BadRow(f"labels[{i}] must be 1 or -1, not {brief(label)}")
    ranks = _per_response(fields, "ranks", responses)
    return {
        "judgements": judgements,
        "labels": tuple(int(label) for label in labels),
        "ranks": tuple(required_number({"r": rank}, "r", f"ranks[{i}]") for i, rank in enumerate(ranks)),
        "ended": ended_flags(fields, responses),
    }


def _per_response(fields: Fields, key: str, responses: int) -> list[Any]:
    """Return a list with one entry per response, or an empty list if the column is absent, null or empty."""
    values = fields.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise BadRow(f"column {key!r} must be a list, not {kind_name(values)}")
    if values and len(values) != responses:
        raise BadRow(f"{key!r} has {len(values)} entries for {responses} responses")
    return values


def has_margin(row: Fields) -> bool:
    """Return whether a row or one of its judgements has a margin."""
    judgements = row.get("judgements")
    return any(fields.get("margin") not in (None, "") for fields in (judgements or [row]))


def ended_flags(row: Fields, responses: int) -> tuple[bool, ...]:
    """Return the column `ended` of sampled responses: false for a response that reached its token limit."""
    flags = row.get("ended")
    if flags is None:
        return ()
    if not isinstance(flags, list) or len(flags) != responses or not all(isinstance(flag, bool) for flag in flags):
        raise BadRow(f"'ended' must be a list of {responses} values true or false")
    return tuple(flags)


def drop_empty_responses(group: PreferenceGroup) -> PreferenceGroup:
    """Remove empty responses and their judgements. Raises Drop if fewer than two responses or no judgement remain."""
    non_empty = [i for i, response in enumerate(group.responses) if not is_empty(response)]
    if len(non_empty) == len(group.responses):
        return group
    new_index = {old: new for new, old in enumerate(non_empty)}
    judgements = tuple(
        replace(j, better=new_index[j.better], worse=new_index[j.worse])
        for j in group.judgements
        if j.better in new_index and j.worse in new_index
    )
    if len(non_empty) < 2 or (group.judgements and not judgements):
        raise Drop("empty response")
    return replace(
        group,
        responses=tuple(group.responses[i] for i in non_empty),
        judgements=judgements,
        labels=tuple(group.labels[i] for i in non_empty if group.labels),
        ranks=tuple(group.ranks[i] for i in non_empty if group.ranks),
        ended=tuple(group.ended[i] for i in non_empty if group.ended),
    )
