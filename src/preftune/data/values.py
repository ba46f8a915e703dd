"""Values of a row, checked: text, numbers, messages, answers. Every refusal names the column and what is wrong."""

from __future__ import annotations

import math
from typing import Any

from preftune.errors import did_you_mean
from preftune.types import Message, Text

Fields = dict[str, Any]


class BadRow(Exception):
    """The row breaks its format."""


class Drop(Exception):
    """The row holds no usable judgement; the text is the reason it is counted under."""


def is_messages(value: Any) -> bool:
    """Whether a value has the shape of a dialogue."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) for m in value)


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


def number(row: Fields, key: str, default: float) -> float:
    """A column that is a finite number, or `default` where it is absent."""
    value = row.get(key)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"column {key!r} must be a number, not {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise BadRow(f"column {key!r} must be a finite number, not {value!r}")
    return number


ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
}


def message_of(value: Any, key: str) -> Message:
    """{"role", "content"} or ShareGPT's {"from", "value"}; content may be a list of text parts."""
    if not isinstance(value, dict):
        raise BadRow(f"{key} must be a message, not {kind_name(value)}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    role, content = value.get(role_key), value.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"{key} has unknown role {role!r}; known: {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise BadRow(f"{key} has tool calls, which are not supported")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadRow(f"{key} has content that is not text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise BadRow(f"{key} has content of the wrong type: {kind_name(content)}")
    return Message(ROLES[role], clean(content, key))


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """A list of messages."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"column {key!r} must be a list of messages, not {kind_name(value)}")
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


def content(text: Text) -> str:
    """The words of a text or of all its messages."""
    return text if isinstance(text, str) else "\n".join(m.content for m in text)
