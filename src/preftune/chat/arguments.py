"""Arguments of tool calls: some templates want them as objects, some as JSON text, and data hold them in both forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from preftune.types import Message, PreferenceGroup, Text

AS_OBJECTS = "arguments of tool calls are JSON text; the chat template needs objects and gets them decoded"
AS_TEXT = "arguments of tool calls are objects; the chat template needs text and gets them as JSON"
QUOTED = (
    "the chat template writes the arguments of tool calls in quotes, since they are JSON text in the data; "
    "store them as objects"
)


def other_forms(group: PreferenceGroup) -> Iterator[tuple[PreferenceGroup, str]]:
    """The group with the arguments of all tool calls in the other form, and the note that says so."""
    for form, note in ((_decoded, AS_OBJECTS), (_encoded, AS_TEXT)):
        changed = replace(
            group, prompt=_changed(group.prompt, form), responses=tuple(_changed(r, form) for r in group.responses)
        )
        if changed != group:
            yield changed, note


def quoted(message: Message, rendered: str) -> bool:
    """Whether JSON text of the arguments is written as a string inside of JSON, with its quotes escaped."""
    texts = [text for text in _arguments(message) if isinstance(text, str) and '"' in text]
    return any(text not in rendered and json.dumps(text, ensure_ascii=False)[1:-1] in rendered for text in texts)


def _changed(text: Text, form: Callable[[Any], Any]) -> Text:
    if isinstance(text, str):
        return text
    return tuple(_with_calls(message, form) if message.extra else message for message in text)


def _with_calls(message: Message, form: Callable[[Any], Any]) -> Message:
    extra = ((name, _in_form(text, form) if name == "tool_calls" else text) for name, text in message.extra)
    return replace(message, extra=tuple(extra))


def _in_form(text: str, form: Callable[[Any], Any]) -> str:
    calls = json.loads(text)
    for function in _functions(calls):
        function["arguments"] = form(function["arguments"])
    return json.dumps(calls, ensure_ascii=False)


def _arguments(message: Message) -> Iterator[Any]:
    for name, text in message.extra:
        if name == "tool_calls":
            yield from (function["arguments"] for function in _functions(json.loads(text)))


def _functions(calls: Any) -> Iterator[dict[str, Any]]:
    """The objects with a name and arguments: a call itself, or what it has under `function`."""
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and "arguments" in function:
            yield function


def _decoded(arguments: Any) -> Any:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _encoded(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
