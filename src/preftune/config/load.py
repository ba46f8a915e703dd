"""YAML files and `a.b=value` overrides -> a checked config. Errors name file, line and key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from preftune.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=BaseModel)
Path_ = tuple[str | int, ...]
MAX_CONFIG_BYTES = 1_000_000


def load(schema: type[C], file: str | Path, overrides: Sequence[str] = ()) -> C:
    """The config in `file`, with `overrides` applied. Raises ConfigError with every problem at once."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError("no such config file", where=str(file))
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError("larger than 1 MB: not a config file", where=str(file))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=str(file)) from None
    raw, places = read_yaml(text, str(file))
    for override in overrides:
        apply_override(raw, places, override)
    return build(schema, raw, places, str(file))


def build(schema: type[C], raw: dict[str, Any], places: dict[Path_, str] | None = None, source: str = "config") -> C:
    """`raw` as a `schema`. `places` says where each key was written."""
    try:
        return schema(**raw)
    except ValidationError as error:
        problems = [_problem(schema, dict(e), places or {}, source) for e in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; itself a valid config file."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Plain data and, for each key path, the "file:line" that set it. No tags, no duplicate keys."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=at) from None
    if root is None:
        return {}, {}
    places: dict[Path_, str] = {}
    value = _construct(root, (), places, source)
    if not isinstance(value, dict):
        raise ConfigError("a config is a mapping of sections, e.g. `model: {path: ...}`", where=source)
    return value, places


def _construct(node: yaml.Node, path: Path_, places: dict[Path_, str], source: str) -> Any:
    where = f"{source}:{node.start_mark.line + 1}"
    places.setdefault(path, where)
    if len(places) > 10_000:
        raise ConfigError("more than 10,000 values: not a config file", where=source)
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise ConfigError(f"values are plain text, numbers and lists, not {node.tag}", where=where)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            key_where = f"{source}:{key_node.start_mark.line + 1}"
            if key in result:
                raise ConfigError(f"{key!r} is set twice", where=key_where)
            places[(*path, key)] = key_where
            result[key] = _construct(value_node, (*path, key), places, source)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*path, i), places, source) for i, child in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except yaml.YAMLError:
        raise ConfigError(f"values are plain text, numbers and lists, not {node.tag}", where=where) from None


def apply_override(raw: dict[str, Any], places: dict[Path_, str], override: str) -> None:
    """Set the key that `a.b=value` names; the value is read as YAML. Numbers index lists."""
    name, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not all(name.split(".")):
        raise ConfigError("an override has the form section.key=value", where=where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError("its value is not valid YAML", where=where) from None
    path: Path_ = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    target: Any = raw
    for part in path[:-1]:
        if isinstance(target, list):
            target = _item(target, part, where)
            continue
        if not isinstance(target.get(part), dict | list):
            target[part] = {}
        target = target[part]
    if isinstance(target, list):
        _item(target, path[-1], where)
    target[path[-1]] = value
    if not isinstance(value, dict | list):
        for old in [p for p in places if p[: len(path)] == path]:
            del places[old]
    places[path] = where


def _item(items: list[Any], index: str | int, where: str) -> Any:
    if not isinstance(index, int) or index >= len(items):
        raise ConfigError(f"the list has entries 0 to {len(items) - 1}", where=where)
    return items[index]


def _problem(schema: type[BaseModel], error: dict[str, Any], places: dict[Path_, str], source: str) -> str:
    loc = _real_path(schema, error["loc"])
    at = next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), source)
    name = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        known = _fields_at(schema, loc[:-1])
        return f"{at}: {name}: unknown key; {did_you_mean(str(loc[-1]), known)}"
    if error["type"] == "missing":
        return f"{at}: {name}: required, not set"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = f", got {error['input']!r}" if isinstance(error["input"], str | int | float | bool | None) else ""
    return f"{at}: {name}: {message}{got}" if name else f"{at}: {message}"


def _real_path(schema: type[BaseModel], loc: tuple[str | int, ...]) -> Path_:
    """pydantic appends the member of a union to the path; keep what the user wrote."""
    path: list[str | int] = []
    here: Any = schema
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            path.append(part)
            here = _section(field.annotation) if field else None
        elif isinstance(part, int):
            path.append(part)
    return tuple(path)


def _fields_at(schema: type[BaseModel], path: Path_) -> list[str]:
    here: Any = schema
    for part in path:
        here = _section(here.model_fields[str(part)].annotation)
    return list(here.model_fields)


def _section(annotation: Any) -> Any:
    """The model class inside `Model`, `Model | None`, or the annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        models = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        return models[0] if models else annotation
    return annotation
