"""The tools of a row: JSON schemas of the functions that the model may call, for the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from preftune.formats.values import BadRow, Fields, is_blank, kind_name, peek, require_utf8
from preftune.types import TOOLS, Message, PreferenceGroup, split_tools

COLUMNS = (TOOLS, "functions")
FIX = "write a list of JSON schemas with name, description and parameters, or omit the column with data.ignore=[{}]"


def tools_of(row: Fields) -> list[dict[str, Any]]:
    """Return the tools in the columns of a row, an empty list without such a column. Raises BadRow for other values."""
    for key in row:
        if key.lower() in COLUMNS and not is_blank(peek(row, key)):
            return read_tools(row.get(key), key)
    return []


def read_tools(value: Any, key: str) -> list[dict[str, Any]]:
    """Read a list of JSON schemas, or JSON text of one. A schema without "function" is wrapped as OpenAI's API does."""
    value = _decoded(value, key)
    items = [_decoded(item, key) for item in (value if isinstance(value, list) else [value])]
    tools = []
    for i, item in enumerate(items):
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            what = "an object without a name" if isinstance(item, dict) else kind_name(item)
            raise BadRow(
                f"column {key!r} must have JSON schemas with a name, but item {i} is {what}", fix=FIX.format(key)
            )
        tools.append(item if "function" in item else {"type": "function", "function": item})
    return tools


def _decoded(value: Any, key: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadRow(f"column {key!r} must be JSON, but the text cannot be decoded", fix=FIX.format(key)) from None


def with_tools(groups: Iterable[PreferenceGroup], tools: list[dict[str, Any]]) -> list[PreferenceGroup]:
    """Return the groups with the tools in the first message of their prompts. Text groups become chats."""
    if not tools:
        return list(groups)
    text = require_utf8(json.dumps(tools, ensure_ascii=False, default=str), TOOLS)
    return [_with_tools(group, text) for group in groups]


def _with_tools(group: PreferenceGroup, text: str) -> PreferenceGroup:
    prompt, responses = group.prompt, group.responses
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
        responses = tuple((Message("assistant", str(response)),) for response in responses)
    if split_tools(prompt)[1]:
        raise BadRow("the prompt has tools in a message, and the row has tools in a column", fix="remove one of them")
    first = replace(prompt[0], extra=tuple(sorted((*prompt[0].extra, (TOOLS, text)))))
    return replace(group, prompt=(first, *prompt[1:]), responses=responses)
