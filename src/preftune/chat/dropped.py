"""What a chat template leaves out: the words of a message that its rendering does not have."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.chat.template import REASONING
from preftune.types import Message, message_dict

WORD = re.compile(r"\w+|[^\w\s]")
#: Fields that only name a message or link it to others. Few templates write them, and they are not part of an answer.
LINKS = ("name", "tool_call_id", "id", "type", "index", "tool_calls.id", "tool_calls.type", "tool_calls.index")
CALLS = ("tool_calls.", "function_call.")
LONGEST = 60


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A text of a message that its rendering does not have; `field` is empty for the content."""

    field: str
    text: str

    def shown(self, rendered: str) -> str:
        """The missing part, for a message."""
        part = repr(missing_part(self.text, rendered))
        return f"{part} of the field {self.field!r}" if self.field else part


def left_out(messages: Sequence[Message], rendered: str) -> LeftOut | None:
    """The first text of `messages` that `rendered` does not have; None if every word is there.

    White space does not count, and neither do order and JSON escapes. Words are counted: a word that the messages have
    twice has to be there twice.
    """
    at = 0
    for message in messages:
        at = _end_of(message.content.strip(), rendered, at)
        if at < 0 or message.extra:
            break
    else:
        return None
    there = Counter(WORD.findall(rendered))
    for message in messages:
        for field, text in [("", message.content), *_texts(message)]:
            words = next((w for w in map(_words, _forms(text)) if not w - there), None)
            if words is None:
                return LeftOut(field, text)
            there -= words
    return None


def unwritten_links(message: Message, rendered: str) -> list[str]:
    """The fields such as `name` or `tool_call_id` whose value is not in `rendered`."""
    return sorted({path for path, text in _fields(message) if path in LINKS and text.strip() not in rendered})


def missing_part(text: str, rendered: str) -> str:
    """What of `text` is not in `rendered`, between the beginning and the end that are, shortened for a message."""
    whole = text.strip()
    if len(whole) < 4000:  # the search takes time that grows with the square of the length
        starts = (n for n in range(len(whole)) if n == 0 or not whole[n - 1].isalnum())
        end = next((n for n in starts if whole[n:] in rendered), len(whole))
        stops = (n for n in range(end, 0, -1) if whole[n - 1].isspace())
        whole = whole[next((n for n in stops if whole[:n].strip() in rendered), 0) : end].strip() or whole
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 3] + "..."


def _end_of(text: str, rendered: str, at: int) -> int:
    """Where `text` ends in `rendered` after `at`, as whole words; -1 if it is not there."""
    found = rendered.find(text, at)
    if found < 0:
        return -1
    end = found + len(text)
    inside = text and (_one_word(rendered[found - 1 : found + 1]) or _one_word(rendered[end - 1 : end + 1]))
    return -1 if inside else end


def _one_word(two: str) -> bool:
    """Whether two neighbouring characters belong to the same word, such as the `_e` of `<|im_end|>`."""
    return len(two) == 2 and all(char.isalnum() or char == "_" for char in two)


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """(path, text) in the other fields of a message. Reasoning that stands under several names counts once."""
    reasoning: dict[str, str] = {}
    for path, text in _fields(message):
        if path in REASONING:
            reasoning.setdefault(text, path)
        elif path not in LINKS:
            yield path, text
    yield from ((path, text) for text, path in reasoning.items())


def _fields(message: Message) -> Iterator[tuple[str, str]]:
    """(path, text) of every text in the other fields of a message, and of the numbers in its tool calls."""
    fields = message_dict(message)
    for name, _ in message.extra:
        yield from _leaves(fields[name], name)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif isinstance(value, str):
        parsed = _object(value) if path.endswith(".arguments") else None
        yield from [(path, value)] if parsed is None else _leaves(parsed, path)
    elif isinstance(value, int | float) and not isinstance(value, bool) and path.startswith(CALLS):
        yield path, json.dumps(value)


def _object(text: str) -> Any:
    """The arguments of a tool call, which some data hold as JSON text; None for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _forms(text: str) -> tuple[str, ...]:
    """The text as it is and as JSON writes it inside of a string."""
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _words(text: str) -> Counter[str]:
    return Counter(WORD.findall(text))
