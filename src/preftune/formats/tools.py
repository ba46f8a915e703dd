"""What a row passes to the chat template besides its messages: the tools that the model may call, and arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from preftune.formats.values import BadRow, Fields, is_blank, kind_name, peek, require_utf8
from preftune.types import ARGUMENTS, TOOLS, Message, PreferenceGroup, split_tools

COLUMNS = (TOOLS, "functions")
FOR_TEMPLATE = (*COLUMNS, ARGUMENTS)  # columns of chats only
FIX = "write a list of JSON schemas with name, description and parameters, or omit the column with data.ignore=[{}]"


def tools_of(row: Fields) -> list[dict[str, Any]]:
    """Return the tools in the columns of a row, an empty list without such a column. Raises BadRow for other values."""
    for key in row:
        if key.lower() in COLUMNS and not is_blank(peek(row, key)):
            return read_tools(row.get(key), key)
    return []


def arguments_of(row: Fields) -> dict[str, Any]:
    """Return the arguments of the chat template that a row has. Raises BadRow for other values."""
    if is_blank(peek(row, ARGUMENTS)):
        return {}
    value = _decoded(row.get(ARGUMENTS), ARGUMENTS)
    if not isinstance(value, dict):
        raise BadRow(
            f"column {ARGUMENTS!r} must be an object with arguments of the chat template, not {kind_name(value)}",
            fix=f"repair it, or omit the column with data.ignore=[{ARGUMENTS}]",
        )
    return {name: item for name, item in value.items() if item is not None}


def for_template(groups: Iterable[PreferenceGroup], row: Fields) -> list[PreferenceGroup]:
    """Return the groups of a row with its tools and template arguments in their prompts."""
    return with_arguments(with_tools(groups, tools_of(row)), arguments_of(row))


def with_arguments(groups: Iterable[PreferenceGroup], arguments: dict[str, Any]) -> list[PreferenceGroup]:
    """Return the groups with the arguments in the first message of their prompts. Text groups become chats."""
    if not arguments:
        return list(groups)
    text = require_utf8(json.dumps(arguments, ensure_ascii=False, default=str), ARGUMENTS)
    return [_with_field(group, ARGUMENTS, text) for group in groups]


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
    groups = list(groups)
    if not tools:
        return groups
    text = require_utf8(json.dumps(tools, ensure_ascii=False, default=str), TOOLS)
    for group in groups:
        if not isinstance(group.prompt, str) and split_tools(group.prompt)[1]:
            raise BadRow(
                "the prompt has tools in a message, and the row has tools in a column", fix="remove one of them"
            )
    return [_with_field(group, TOOLS, text) for group in groups]


def _with_field(group: PreferenceGroup, name: str, text: str) -> PreferenceGroup:
    prompt, responses = group.prompt, group.responses
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
        responses = tuple((Message("assistant", str(response)),) for response in responses)
    others = [entry for entry in prompt[0].extra if entry[0] != name]
    first = replace(prompt[0], extra=tuple(sorted((*others, (name, text)))))
    return replace(group, prompt=(first, *prompt[1:]), responses=responses)
