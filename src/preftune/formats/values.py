"""Values of a row, checked: text, numbers, messages, answers, judgements. Every refusal says what is wrong where."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from numbers import Integral
from reprlib import repr as brief
from typing import Any

from preftune.errors import did_you_mean
from preftune.types import Judgement, Message, PreferenceGroup, Text

Fields = dict[str, Any]
LARGEST = 1e38  # the difference of two such numbers is still finite in fp32


class BadRow(Exception):
    """The row breaks its format. `fix` is what the user can do about this fault, where that is known."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.fix = fix


class Drop(Exception):
    """The row holds no usable judgement; the text is the reason it is counted under."""


def is_messages(value: Any) -> bool:
    """Whether a value is a list of objects, as a dialogue is."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) for m in value)


def peek(row: Fields, key: str) -> Any:
    """The value of a column or None, to choose between columns: a tracked row does not count it as used."""
    return dict.get(row, key)


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, empty text, an empty list or object, also as JSON text or of such values."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return value is None or (items is not None and all(map(is_blank, items)))


def get(row: Fields, key: str) -> Any:
    """The value of a column that must be there and not be null."""
    if key not in row:
        raise BadRow(f"column {key!r} is missing; {did_you_mean(key, row)}")
    if row[key] is None:
        raise BadRow(f"column {key!r} is null")
    return row[key]


def string(row: Fields, key: str) -> str:
    """A column that must be text."""
    value = get(row, key)
    if not isinstance(value, str):
        raise BadRow(f"column {key!r} must be text, not {kind_name(value)}")
    return clean(value, key)


def clean(text: str, key: str) -> str:
    """Text that can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"column {key!r} holds half a surrogate pair at character {error.start}") from None
    return text


def kind_name(value: Any) -> str:
    """The type of a value in words."""
    names = {
        dict: "an object",
        list: "a list",
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def number(row: Fields, key: str, default: float, where: str = "") -> float:
    """A column that is a finite number, or `default` where it is absent."""
    where = where or f"column {key!r}"
    value = row.get(key)
    if isinstance(value, list) and len(value) == 1:  # some writers put a single number into a list
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
    """A finite number, also as the text of a CSV cell, or None."""
    try:
        found = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) <= LARGEST else None


def required_number(fields: Fields, key: str, where: str) -> float:
    """A number that must be there."""
    if fields.get(key) is None or fields[key] == "":
        raise BadRow(f"{where} is {'empty' if fields.get(key) == '' else 'null'}")
    return number(fields, key, 0.0, where)


ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
CALLS = ("function_call", "tool_call")  # roles of assistant turns that call a tool; their text is the call as JSON
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "message", "text")
#: Fields of a message that identify it and say nothing to the model: turns that differ only here are the same turn.
NOT_WORDS = {"id", "message_id", "parent_id", "uuid", "index", "turn", "date", "timestamp", "created_at", "model"}
LABELS = {"name", "tool_call_id", "finish_reason"}  # fields that say something about a turn, but not what it says


def message_of(value: Any, key: str) -> Message:
    """{"role", "content"}, or {"from", "value"}, or {"speaker", "message"}; content may be a list of text parts.

    Every other field that is not null or empty goes to Message.extra.
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
        raise BadRow(f"{key} has no role", fix='write messages as {"role": "user", "content": "..."}')
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise BadRow(
            f"{key} has unknown role {role!r}; known: {', '.join([*ROLES, *CALLS])}",
            fix="rename the role to user, assistant, system or tool",
        )
    if content is None and rest:  # an assistant turn may be a tool call or reasoning alone
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{key}.{content_key}[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRow(f"{key} has content of the wrong type: {kind_name(content)}")
    extra = {name: clean(json.dumps(item, ensure_ascii=False, default=str), key) for name, item in rest.items()}
    return Message(ROLES[role.strip().lower()], clean(content, key), tuple(sorted(extra.items())))


def _part(part: Any, where: str) -> str:
    """The text of one part of a message's content."""
    text = part.get("text") if isinstance(part, dict) else part
    others = {k for k, v in part.items() if k not in ("type", "text") and v} if isinstance(part, dict) else set()
    if not isinstance(text, str) or others & {"image", "image_url", "audio", "input_audio", "video"}:
        kind = part.get("type") if isinstance(part, dict) else kind_name(part)
        what = "write the part as text" if "think" in str(kind) or "reason" in str(kind) else "remove these rows"
        raise BadRow(
            f"{where} has content that is not text: {kind!r}",
            fix=f"preftune trains on text: {what}, or count and drop them with data.bad_rows=drop",
        )
    return text


def _calls_of(content: Any, role: str, key: str) -> list[dict[str, Any]]:
    """The tool calls of a turn whose role is function_call: JSON {"name", "arguments"}, or a list of such objects."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    good = (
        isinstance(calls, list)
        and calls
        and all(isinstance(c, dict) and set(c) == {"name", "arguments"} for c in calls)
    )
    if not good:
        raise BadRow(
            f'{key} has role {role!r}, but its text is not JSON of the form {{"name": ..., "arguments": ...}}',
            fix="write the turn as an assistant message with the field tool_calls",
        )
    return [{"type": "function", "function": call} for call in calls or ()]


def words_of(text: Text) -> Any:
    """What a text says, for comparing: of a chat without the fields that hold no text or only identify a message."""
    if isinstance(text, str):
        return text
    return tuple((m.role, m.content, tuple(e for e in m.extra if e[0] not in NOT_WORDS and '"' in e[1])) for m in text)


def is_empty(text: Text) -> bool:
    """Whether nothing is said: no text, no tool call, no reasoning."""
    if isinstance(text, str):
        return not text.strip()
    return all(not content.strip() and {name for name, _ in extra} <= LABELS for _, content, extra in words_of(text))


def has_role(value: Any) -> bool:
    """Whether a value is an object with the role of a message."""
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in ROLE_KEYS)


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of objects with roles, which is stricter than `is_messages`."""
    return is_messages(value) and all(has_role(message) for message in value)


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """A list of messages."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_name(value)
        raise BadRow(f"column {key!r} must be a list of messages, not {found}")
    if all(isinstance(m, str) for m in value):
        raise BadRow(
            f"column {key!r} must be text or messages, not a list of {len(value)} texts",
            fix="write one text, or messages with role and content; ranked responses are read with "
            "data.columns={responses: COLUMN, scores: COLUMN}",
        )
    return tuple(message_of(m, f"{key}[{i}]") for i, m in enumerate(value))


def text_of(row: Fields, key: str) -> Text:
    """Text, one message or a list of messages."""
    value = get(row, key)
    if isinstance(value, str):
        return clean(value, key)
    if isinstance(value, dict):
        return (message_of(value, key),)
    return messages_of(value, key)


def answer_of(row: Fields, key: str) -> Text:
    """A response: text or exactly one assistant message."""
    value = text_of(row, key)
    return value if isinstance(value, str) else one_turn(value)


def one_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Exactly one assistant message."""
    if len(messages) != 1:
        raise Drop("several turns after the prompt")
    if messages[0].role != "assistant":
        raise Drop("response is not by the assistant")
    return messages


def grades(fields: Fields, where: str = "") -> tuple[float, float, float]:
    """Weight, probability and margin of a judgement, each in its range; a weight of 0 is the caller's to judge."""
    at = {key: f"{where}.{key}" if where else f"column {key!r}" for key in ("weight", "probability", "margin")}
    weight = number(fields, "weight", 1.0, at["weight"])
    if weight < 0:
        raise BadRow(f"{at['weight']} must not be below 0, got {weight}")
    probability = number(fields, "probability", 1.0, at["probability"])
    if not 0 <= probability <= 1:
        raise BadRow(f"{at['probability']} must lie between 0 and 1, not {probability}")
    return weight, probability, number(fields, "margin", 0.0, at["margin"])


def judgement_of(item: Any, where: str, responses: int) -> Judgement:
    """{"better", "worse", and perhaps "weight", "probability", "margin"} between two of so many responses."""
    known = {"better", "worse", "weight", "probability", "margin"}
    if not isinstance(item, dict) or not {"better", "worse"} <= set(item) <= known:
        raise BadRow(f"{where} must be an object with better and worse, not {brief(item)}")
    sides = [item["better"], item["worse"]]
    if not all(isinstance(k, Integral) and not isinstance(k, bool) and 0 <= int(k) < responses for k in sides):
        raise BadRow(f"{where} names a response that does not exist: {brief(sides)} of {responses}, counted from 0")
    if sides[0] == sides[1]:
        raise BadRow(f"{where} calls response {sides[0]} better than itself")
    weight, probability, margin = grades(item, where)
    if weight == 0:
        raise BadRow(f"{where}.weight must be above 0")
    return Judgement(int(sides[0]), int(sides[1]), weight, probability, margin)


def knowledge_of(fields: Fields, responses: int) -> dict[str, Any]:
    """What is known about the responses of a group, checked: judgements, labels, ranks, ended."""
    items = fields.get("judgements")
    if not isinstance(items, list):
        raise BadRow(f"column 'judgements' must be a list, not {kind_name(items)}")
    judgements = tuple(judgement_of(item, f"judgements[{i}]", responses) for i, item in enumerate(items))
    without = [i for i, item in enumerate(items) if item.get("margin") is None]
    if 0 < len(without) < len(items):
        raise BadRow(f"judgements[{without[0]}] has no margin, but others of the row have one")
    labels = _each(fields, "labels", responses)
    for i, label in enumerate(labels):
        if isinstance(label, bool) or label not in (1, -1):
            raise BadRow(f"labels[{i}] must be 1 or -1, not {brief(label)}")
    ranks = [required_number({"r": r}, "r", f"ranks[{i}]") for i, r in enumerate(_each(fields, "ranks", responses))]
    return {
        "judgements": judgements,
        "labels": tuple(int(label) for label in labels),
        "ranks": tuple(ranks),
        "ended": flags_of(fields, responses),
    }


def _each(fields: Fields, key: str, responses: int) -> list[Any]:
    """A column with one entry a response; absent, null and empty mean that nothing is known."""
    values = fields.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise BadRow(f"column {key!r} must be a list, not {kind_name(values)}")
    if values and len(values) != responses:
        raise BadRow(f"{key!r} has {len(values)} entries for {responses} responses")
    return values


def states_margin(row: Fields) -> bool:
    """Whether a row says by how much one response is better."""
    judgements = row.get("judgements")
    return any(place.get("margin") not in (None, "") for place in (judgements or [row]))


def flags_of(row: Fields, responses: int) -> tuple[bool, ...]:
    """Column `ended` of sampled responses: false for one that hit its token limit."""
    flags = row.get("ended")
    if flags is None:
        return ()
    if not isinstance(flags, list) or len(flags) != responses or not all(isinstance(flag, bool) for flag in flags):
        raise BadRow(f"'ended' must be a list of {responses} times true or false")
    return tuple(flags)


def without_empty(group: PreferenceGroup) -> PreferenceGroup:
    """The group without its empty responses and their judgements; at least two responses must remain."""
    full = [i for i, response in enumerate(group.responses) if not is_empty(response)]
    if len(full) == len(group.responses):
        return group
    place = {old: new for new, old in enumerate(full)}
    judgements = tuple(
        replace(j, better=place[j.better], worse=place[j.worse])
        for j in group.judgements
        if j.better in place and j.worse in place
    )
    if len(full) < 2 or (group.judgements and not judgements):
        raise Drop("empty response")
    return replace(
        group,
        responses=tuple(group.responses[i] for i in full),
        judgements=judgements,
        labels=tuple(group.labels[i] for i in full if group.labels),
        ranks=tuple(group.ranks[i] for i in full if group.ranks),
        ended=tuple(group.ended[i] for i in full if group.ended),
    )
