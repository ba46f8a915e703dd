"""Convert tool-call arguments between objects and JSON text: data sets use both, and most templates accept only one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from preftune.types import Message, PreferenceGroup, Text

AS_OBJECTS = "the chat template needs tool-call arguments as objects; the JSON text in the data was decoded"
AS_TEXT = "the chat template needs tool-call arguments as text; the objects in the data were encoded as JSON"
QUOTED = (
    "the chat template writes tool-call arguments as a quoted string or as Python code, neither of which is JSON; "
    "store them as objects"
)


def other_forms(group: PreferenceGroup) -> Iterator[tuple[PreferenceGroup, str]]:
    """Yield the group with all tool-call arguments decoded, then encoded, each with a note, if that changes it."""
    for convert, note in ((_decode, AS_OBJECTS), (_encode, AS_TEXT)):
        responses = tuple(_convert_text(r, convert) for r in group.responses)
        changed = replace(group, prompt=_convert_text(group.prompt, convert), responses=responses)
        if changed != group:
            yield changed, note


def are_quoted(message: Message, rendered: str) -> bool:
    """Return whether `rendered` has the arguments as a string inside JSON, with escaped quotes, or as Python code."""
    calls = json.loads(dict(message.extra).get("tool_calls", "[]"))
    arguments = [function["arguments"] for function in _functions(calls)]
    if any(isinstance(value, dict) and value and str(value) in rendered for value in arguments):
        return True
    texts = [text for text in arguments if isinstance(text, str) and '"' in text]
    return any(text not in rendered and json.dumps(text, ensure_ascii=False)[1:-1] in rendered for text in texts)


def _convert_text(text: Text, convert: Callable[[Any], Any]) -> Text:
    if isinstance(text, str):
        return text
    return tuple(_convert_message(message, convert) if message.extra else message for message in text)


def _convert_message(message: Message, convert: Callable[[Any], Any]) -> Message:
    extra = ((name, _convert_calls(text, convert) if name == "tool_calls" else text) for name, text in message.extra)
    return replace(message, extra=tuple(extra))


def _convert_calls(text: str, convert: Callable[[Any], Any]) -> str:
    calls = json.loads(text)
    for function in _functions(calls):
        function["arguments"] = convert(function["arguments"])
    return json.dumps(calls, ensure_ascii=False)


def _functions(calls: Any) -> Iterator[dict[str, Any]]:
    """Yield the object with name and arguments of each call: its value of `function`, or the call itself."""
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and "arguments" in function:
            yield function


def _decode(arguments: Any) -> Any:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _encode(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
