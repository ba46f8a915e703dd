"""Set values in the text of a YAML file. Comments and the rest of the text do not change."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from preftune.config.load import apply_override

# Text that YAML reads in the same way inside {...} and as the value on a line.
PLAIN = re.compile(r"-?[\w./~+][\w./~+-]*([=:@ ][\w./~+-]+)*")


def with_setting(text: str, setting: str) -> str:
    """Return the YAML `text` with SECTION.KEY=VALUE set. A new key is added at the end of its section.

    The setting must be valid for the file: see `preftune.config.load.load`, which reports what is wrong with it.
    """
    name, _, value = setting.partition("=")
    keys = name.split(".")
    if not PLAIN.fullmatch(value):
        parsed: dict[str, Any] = {}
        apply_override(parsed, {}, f"value={value}")
        value = json.dumps(parsed["value"], ensure_ascii=False)  # valid everywhere in a YAML file
    node = yaml.compose(text)
    assert node is not None, "an empty file"
    for depth, key in enumerate(keys):
        rest = f"{keys[-1]}: {value}"
        for outer in reversed(keys[depth:-1]):
            rest = f"{outer}: {{{rest}}}"
        if not isinstance(node, yaml.MappingNode):
            value = f"{{{rest}}}"
            break
        child = next((item for item_key, item in node.value if item_key.value == key), None)
        if child is None:
            return _with_entry(text, node, rest)
        node = child
    return text[: node.start_mark.index] + value + text[_last_scalar(node).end_mark.index :]


def _with_entry(text: str, mapping: yaml.MappingNode, entry: str) -> str:
    """Add `key: value` at the end of a mapping: before its }, or on a new line."""
    if mapping.flow_style:
        at = mapping.end_mark.index - 1
        return f"{text[:at]}{', ' if mapping.value else ''}{entry}{text[at:]}"
    at = text.find("\n", _last_scalar(mapping).end_mark.index)
    at = len(text) if at < 0 else at
    return f"{text[:at]}\n{' ' * mapping.start_mark.column}{entry}{text[at:]}"


def _last_scalar(node: yaml.Node) -> yaml.Node:
    """The last entry of a block mapping or list, because PyYAML ends these only after the comments that follow."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node
