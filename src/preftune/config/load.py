"""YAML files and `a.b=value` overrides -> a checked config. Errors name file, line and key."""

from __future__ import annotations

import difflib
import re
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
MAX_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """Reads 1e-1 as a number, which YAML 1.1 takes for text, and leaves dates as text: no value is one."""


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would read as a number."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load(schema: type[C], file: str | Path, overrides: Sequence[str] = ()) -> C:
    """The config in `file`, with `overrides` applied. Raises ConfigError with every problem at once."""
    raw, places = read_file(file)
    for override in overrides:
        apply_override(raw, places, override)
    return build(schema, raw, places, str(file))


def read_file(file: str | Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    """The YAML file as plain data, and where each of its keys is set. It is not checked against a schema."""
    return read_yaml(_read_text(Path(file), str(file)), str(file))


def _read_text(path: Path, where: str) -> str:
    try:
        if path.is_dir():
            raise ConfigError("a folder, not a config file", where=where, fix=_configs_in(path))
        if not path.is_file():
            raise ConfigError(
                "no such config file",
                where=where,
                fix="the first argument is a YAML file, relative to where the command runs; KEY=VALUE come after it",
            )
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError("larger than 1 MB: not a config file", where=where)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=where, fix="save it as UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where[:200]) from None


def _configs_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.y*ml"))
    return f"give one of its files: {', '.join(names[:8])}" if names else "give a .yaml file"


def build(schema: type[C], raw: dict[str, Any], places: dict[Path_, str] | None = None, source: str = "config") -> C:
    """`raw` as a `schema`. `places` says where each key was written."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise refused(schema, error, places or {}, source) from None


def refused(schema: type[BaseModel], error: ValidationError, places: dict[Path_, str], source: str) -> ConfigError:
    """Every problem of a config, one line each."""
    problems = [_problem(schema, dict(e), places, source) for e in error.errors()]
    return ConfigError("\n".join(dict.fromkeys(problems)))


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; itself a valid config file."""
    return str(yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Plain data and, for each key path, the "file:line" that set it. No tags, no duplicate keys."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"not valid YAML: {problem}", where=at) from None
    except RecursionError:
        raise ConfigError(f"nested more than {MAX_DEPTH} deep: not a config file", where=source) from None
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
    if len(path) > MAX_DEPTH:
        raise ConfigError(
            f"nested more than {MAX_DEPTH} deep, or an alias (*) inside what it stands for: not a config file",
            where=where,
        )
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
        return _Loader("").construct_object(node)
    except (yaml.YAMLError, ValueError):  # ValueError: an integer of 5000 digits
        raise ConfigError(f"values are plain text, numbers and lists, not {node.tag}", where=where) from None


def apply_override(raw: dict[str, Any], places: dict[Path_, str], override: str) -> None:
    """Set the key that `a.b=value` names; the value is read as YAML. Numbers index lists."""
    name, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not all(name.split(".")):
        raise ConfigError("an override has the form section.key=value", where=where)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        raise ConfigError("its value is not valid YAML", where=where) from None
    value = None if root is None else _construct(root, (), {}, where)
    path: Path_ = ()
    target: Any = raw
    parts = name.split(".")
    for number, part in enumerate(parts, start=1):
        key: str | int = part
        if isinstance(target, list):
            key = int(part) if part.isdecimal() else part
            _item(target, key, where)
        path = (*path, key)
        if number == len(parts):
            target[key] = value
            break
        if isinstance(target, dict) and not isinstance(target.get(key), dict | list):
            target[key] = {}
            places[path] = where
        target = target[key]
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
        return f"{at}: {name}: unknown key; {_nearest(schema, loc)}"
    if error["type"] == "missing":
        return f"{at}: {name}: required, not set"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message += " (text that looks like a number or true/false needs quotes)"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        close = difflib.get_close_matches(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        message += f" (did you mean {close[0]!r}?)" if close else ""
    got = f", got {error['input']!r}" if isinstance(error["input"], str | int | float | bool | None) else ""
    return f"{at}: {name}: {message}{got}" if name else f"{at}: {message}"


def _nearest(schema: type[BaseModel], loc: Path_) -> str:
    """A suggestion for an unknown key: the same key in another section, else the nearest name beside it."""
    key, beside = str(loc[-1]), _fields_at(schema, loc[:-1])
    sections = {name: _section(field.annotation) for name, field in schema.model_fields.items()}
    homes = [name for name, s in sections.items() if isinstance(s, type) and issubclass(s, BaseModel)]
    found = [f"{name}.{key}" for name in homes if key in sections[name].model_fields]
    if key == "beta" and "loss" in sections:
        found.append("loss.beta")
    return f"did you mean {' or '.join(found)}?" if found else did_you_mean(key, beside)


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
