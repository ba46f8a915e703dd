"""The JSON Schema of a config, with which editors check and complete YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from preftune.config.commands import CONFIGS
from preftune.config.loss_names import loss_signatures
from preftune.config.values import SAME_DTYPE

DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest draft that the YAML plugin of VS Code supports fully


def json_schema(method: str) -> dict[str, Any]:
    """Return the schema of the config of a training command. Descriptions are the docstrings of the fields.

    It accepts what the command accepts: also the other names of precisions, losses as text, and optim.lr=auto.
    """
    config = CONFIGS[method]
    schema = _as_draft_7(config.model_json_schema(ref_template="#/definitions/{model}"))
    for node in _objects(schema):
        _tidy(node)
    _widen(schema)
    command = "data noise" if method == "noise" else method
    title = {"$schema": DRAFT, "title": f"preftune {command}", "description": f"Config of preftune {command}"}
    return {**title, **{key: value for key, value in schema.items() if key not in title}}


def _as_draft_7(schema: dict[str, Any]) -> dict[str, Any]:
    definitions = schema.pop("$defs", {})
    return {**schema, "definitions": definitions}


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema, from outside to inside."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _objects(child)


def _tidy(node: dict[str, Any]) -> None:
    """Remove the titles that pydantic derives from names, and join the lines of descriptions."""
    if isinstance(node.get("title"), str):
        del node["title"]
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
    if isinstance(node.get("default"), dict) and node["default"]:  # a section; its keys have their defaults
        del node["default"]
    if set(node) > {"$ref"} and "$ref" in node:  # draft 7 ignores all other keys of an object with $ref
        node["allOf"] = [{"$ref": node.pop("$ref")}]


def _widen(schema: dict[str, Any]) -> None:
    """Add what validators accept before pydantic checks the type."""
    definitions = schema["definitions"]
    for name in ("dtype", "save_dtype"):
        names = definitions["ModelConfig"]["properties"][name]["enum"]
        names += [other for other in SAME_DTYPE if other not in names]
    rate = definitions["OptimConfig"]["properties"]["lr"]
    limits = {key: rate.pop(key) for key in ("type", "exclusiveMinimum", "maximum")}
    del rate["default"]  # it depends on the method
    rate["anyOf"] = [limits, {"const": "auto"}]
    for section in ("DataConfig", "PromptConfig"):
        if section in definitions:
            for kind in definitions[section]["properties"]["eval"].get("anyOf", []):
                if kind.get("type") == "number":
                    kind.update(exclusiveMinimum=0, exclusiveMaximum=1)
    if "best" in schema["properties"]:
        schema["properties"]["best"]["anyOf"].insert(0, {"type": "string", "description": "A metric, such as loss"})
    if "loss" in schema["properties"]:
        definitions["loss"] = _loss()
        definitions["loss_in_sum"] = _loss(weighted=True)
        loss = schema["properties"]["loss"]
        loss.pop("type", None)
        loss["anyOf"] = [
            _names(),
            {"$ref": "#/definitions/loss"},
            {"type": "array", "minItems": 1, "items": {"anyOf": [_names(), {"$ref": "#/definitions/loss_in_sum"}]}},
        ]


OWN = {"type": "string", "pattern": r"\.py:\w+$", "description": "A loss of your own: file.py:function"}


def _names() -> dict[str, Any]:
    """Return the schema of the name of a loss."""
    losses = [{"const": name, "description": loss.summary} for name, loss in loss_signatures().items()]
    return {"anyOf": [*losses, {"const": "dpo", "description": "The same as sigmoid"}, OWN]}


def _loss(weighted: bool = False) -> dict[str, Any]:
    """Return the schema of a loss with its parameters. A built-in loss has no other parameters than its own."""
    weight: dict[str, Any] = {"weight": {"type": "number", "exclusiveMinimum": 0, "description": "Weight in the sum"}}
    common = {"name": _names(), **(weight if weighted else {})}
    parameters: dict[str, Any] = {}
    branches = []
    for name, loss in loss_signatures().items():
        kinds = {key: {"type": _type(value), "default": value} for key, value in loss.parameters.items()}
        for key in kinds:
            parameters.setdefault(key, {"type": kinds[key]["type"], "description": _used_by(key)})
        names = {"enum": ["sigmoid", "dpo"]} if name == "sigmoid" else {"const": name}
        allowed = {"propertyNames": {"enum": [*common, *kinds]}}
        required: dict[str, Any] = {} if name == "sigmoid" else {"required": ["name"]}  # the default is sigmoid
        branches.append({"if": {"properties": {"name": names}, **required}, "then": allowed})
    return {"type": "object", "properties": {**common, **parameters}, "allOf": branches}


def _type(value: float | bool) -> str:
    return "boolean" if isinstance(value, bool) else "number"


def _used_by(parameter: str) -> str:
    """Return the losses that have a parameter, with its default value."""
    losses = [(name, loss.parameters) for name, loss in loss_signatures().items() if parameter in loss.parameters]
    return "Default: " + ", ".join(f"{name} {parameters[parameter]}" for name, parameters in losses)


@cache
def keys_of(method: str) -> dict[str, dict[str, Any]]:
    """Return the schema of every key of the config by its full name, such as optim.lr. Sections are not keys."""
    schema = json_schema(method)
    keys: dict[str, dict[str, Any]] = {}

    def visit(properties: dict[str, Any], prefix: str) -> None:
        for name, node in properties.items():
            section = _section(schema, node)
            if section:
                visit(section, f"{prefix}{name}.")
            if not section or _is_optional(node):
                keys[f"{prefix}{name}"] = node

    visit(schema["properties"], "")
    return keys


def _section(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of the section that a node refers to; empty if it is not a section."""
    for part in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        match = re.fullmatch("#/definitions/(.+)", part.get("$ref", ""))
        if match:
            properties: dict[str, Any] = schema["definitions"][match[1]].get("properties", {})
            return properties
    return {}


def _is_optional(node: dict[str, Any]) -> bool:
    return any(part.get("type") == "null" for part in node.get("anyOf", []))


def values_of(node: dict[str, Any]) -> list[str]:
    """Return the values that a key can have, if they can be listed."""
    values: list[Any] = []
    for part in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        values += part.get("enum", [])
        values += [part["const"]] if "const" in part else []
        values += {"boolean": ["true", "false"], "null": ["null"]}.get(str(part.get("type")), [])
        if part is not node and "anyOf" in part:
            values += values_of(part)
    return list(dict.fromkeys(map(str, values)))
