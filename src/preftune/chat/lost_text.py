"""Detect text that a chat template removes: words of a message that its rendering does not contain."""

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
#: Fields that identify a message or link it to others. They are not part of a response, and few templates write them.
LINKS = ("name", "tool_call_id", "id", "type", "index", "tool_calls.id", "tool_calls.type", "tool_calls.index")
CALLS = ("tool_calls.", "function_call.")
MAX_EXCERPT = 60  # characters


@dataclass(frozen=True, slots=True)
class MissingText:
    """A text of a message that its rendering does not contain. `field` is the path of its field, "" for the content."""

    field: str
    text: str

    def describe(self, rendered: str) -> str:
        """Return the missing part and its field, for an error message."""
        part = repr(missing_part(self.text, rendered))
        return f"{part} of the field {self.field!r}" if self.field else part


def find_missing(messages: Sequence[Message], rendered: str) -> MissingText | None:
    """Return the first text of `messages` that `rendered` does not contain, or None if no word is missing.

    White space, order and JSON escapes are ignored. Words are counted: a word that occurs twice in the messages must
    occur at least twice in `rendered`.
    """
    at = 0
    for message in messages:
        at = _end_of(message.content.strip(), rendered, at)
        if at < 0 or message.extra:
            break
    else:
        return None
    unused = Counter(WORD.findall(rendered))
    for message in messages:
        for field, text in [("", message.content), *_texts(message)]:
            words = next((w for w in map(_words, _forms(text)) if not w - unused), None)
            if words is None:
                return MissingText(field, text)
            unused -= words
    return None


def unwritten_links(message: Message, rendered: str) -> list[str]:
    """Return the fields in LINKS, such as `tool_call_id`, whose value is not in `rendered`."""
    return sorted({path for path, text in _fields(message) if path in LINKS and text.strip() not in rendered})


def unwritten_tools(tools: Sequence[Any], rendered: str) -> list[str]:
    """Return the names of the tools that are not in `rendered`."""
    functions = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    return [name for f in functions if (name := str(f.get("name", ""))) and name not in rendered]


def missing_part(text: str, rendered: str) -> str:
    """Return the part of `text` between its longest start and end that `rendered` contains, shortened for a message."""
    part = text.strip()
    if len(part) < 4000:  # the search time grows with the square of the length
        starts = (n for n in range(len(part)) if n == 0 or not part[n - 1].isalnum())
        end = next((n for n in starts if part[n:] in rendered), len(part))
        stops = (n for n in range(end, 0, -1) if part[n - 1].isspace())
        part = part[next((n for n in stops if part[:n].strip() in rendered), 0) : end].strip() or part
    return part if len(part) <= MAX_EXCERPT else part[: MAX_EXCERPT - 3] + "..."


def _end_of(text: str, rendered: str, at: int) -> int:
    """Return the index at which `text`, as whole words, ends in `rendered` after `at`, or -1 if it does not occur."""
    start = rendered.find(text, at)
    if start < 0:
        return -1
    end = start + len(text)
    inside = text and (_one_word(rendered[start - 1 : start + 1]) or _one_word(rendered[end - 1 : end + 1]))
    return -1 if inside else end


def _one_word(two: str) -> bool:
    """Return whether two adjacent characters belong to one word, such as the `_e` of `<|im_end|>`."""
    return len(two) == 2 and all(char.isalnum() or char == "_" for char in two)


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield (path, text) for `extra`, without link fields. Reasoning stored under several names is yielded once."""
    reasoning: dict[str, str] = {}
    for path, text in _fields(message):
        if path in REASONING:
            reasoning.setdefault(text, path)
        elif path not in LINKS:
            yield path, text
    yield from ((path, text) for text, path in reasoning.items())


def _fields(message: Message) -> Iterator[tuple[str, str]]:
    """Yield (path, text) for every string in `extra`, and for the numbers in tool calls."""
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
    """Decode tool-call arguments that are JSON text; return None for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _forms(text: str) -> tuple[str, ...]:
    """Return the text unchanged and as escaped inside a JSON string, with and without non-ASCII characters."""
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _words(text: str) -> Counter[str]:
    return Counter(WORD.findall(text))
