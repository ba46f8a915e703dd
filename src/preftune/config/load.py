"""Read a config from a YAML file and `section.key=value` overrides. Errors name the file, the line and the key."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from preftune.config.hints import KeyPath, entry_of, fields_at, section_of, suggest
from preftune.errors import ConfigError, plain_problem
from preftune.owners import remember

C = TypeVar("C", bound=BaseModel)
Places = dict[KeyPath, str]  # the "file:line" or override that sets each key
MAX_DEPTH = 50
PASS_A_CONFIG = "pass a YAML file, relative to the current folder, as the first argument, and KEY=VALUE after it"


class _Loader(yaml.SafeLoader):
    """Read 1e-1 as a number (it is text in YAML 1.1), and dates as text."""


class _Dumper(yaml.SafeDumper):
    """Quote text that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load(schema: type[C], file: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read the config in `file` and apply `overrides`. Raises ConfigError that lists every problem."""
    raw, places = read_file(file)
    for override in overrides:
        apply_override(raw, places, override)
    return build(schema, raw, places, str(file))


def read_file(file: str | Path) -> tuple[dict[str, Any], Places]:
    """Read a YAML file without tags and duplicate keys. Return plain data and the "file:line" of each key.

    The keys are not checked against a schema.
    """
    source = str(file)
    text = _read_text(Path(file), source)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"not valid YAML: {problem}", where=at, fix="repair the YAML at this line") from None
    except RecursionError:
        raise ConfigError(f"more than {MAX_DEPTH} levels of nesting", where=source, fix=PASS_A_CONFIG) from None
    if root is None:
        return {}, {}
    places: Places = {}
    value = _construct(root, (), places, source)
    if not isinstance(value, dict):
        raise ConfigError("a config must be a mapping of sections", where=source, fix="write `model: {path: ...}`")
    remember(Path(file), value)
    return value, places


def _read_text(path: Path, where: str) -> str:
    try:
        if path.is_dir():
            names = sorted(file.name for file in path.glob("*.y*ml"))
            fix = f"pass one of its files: {', '.join(names[:8])}" if names else "pass a .yaml file"
            raise ConfigError("this is a folder, not a config file", where=where, fix=fix)
        if not path.is_file():
            raise ConfigError("no such config file", where=where, fix=PASS_A_CONFIG)
        if path.stat().st_size > 1_000_000:
            what = "the file is larger than 1 MB, so it is not a config file"
            raise ConfigError(what, where=where, fix=PASS_A_CONFIG)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8", where=where, fix="save the file as UTF-8 text") from None
    except OSError as error:
        what, fix = f"the file cannot be read: {error.strerror}", "check the path and its permissions"
        raise ConfigError(what, where=where[:200], fix=fix) from None


def build(
    schema: type[C],
    raw: dict[str, Any],
    places: Places | None = None,
    source: str = "config",
    others: Callable[[], list[str]] = list,
) -> C:
    """Check `raw` against `schema`. Errors name the place of a key in `places`, or else `source`.

    `others` returns more problems. It is called only if there are any, because it may take time.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise config_error(schema, error, places or {}, source, others()) from None


def config_error(
    schema: type[BaseModel], error: ValidationError, places: Places, source: str, others: Sequence[str] = ()
) -> ConfigError:
    """Return the ConfigError that lists every problem of a config, one per line."""
    problems = [_problem(schema, path, errors, places, source) for path, errors in _by_key(schema, error).items()]
    return ConfigError("\n".join(dict.fromkeys([*problems, *others])))


def _by_key(schema: type[BaseModel], error: ValidationError) -> dict[KeyPath, list[dict[str, Any]]]:
    """Return the errors of each key. A key that accepts several types has one error for each of them."""
    by_key: dict[KeyPath, list[dict[str, Any]]] = {}
    for e in error.errors():
        by_key.setdefault(_real_path(schema, e["loc"]), []).append(dict(e))
    inside = {path[:n] for path in by_key for n in range(len(path)) if isinstance(path[n], int)}
    return {path: errors for path, errors in by_key.items() if path not in inside}  # a list with a wrong entry


def dump(config: BaseModel) -> str:
    """Return the resolved config as YAML. The text is a valid config file."""
    return str(yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def dump_value(value: Any) -> str:
    """Return a value as YAML on one line. `load` reads it as the same value."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    )
    return str(text).removesuffix("...\n").strip()


def _construct(node: yaml.Node, path: KeyPath, places: Places, source: str) -> Any:
    where = f"{source}:{node.start_mark.line + 1}"
    places.setdefault(path, where)
    if len(places) > 10_000:
        raise ConfigError("more than 10,000 values", where=source, why="this is not a config file", fix=PASS_A_CONFIG)
    if len(path) > MAX_DEPTH:
        what = f"more than {MAX_DEPTH} levels of nesting, or an alias (*) inside the value it refers to"
        raise ConfigError(what, where=where, fix="write the value without the alias, and with fewer levels")
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        what = f"a value must be text, a number, a list or a mapping, not {node.tag}"
        raise ConfigError(what, where=where, fix="remove the tag that begins with !")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            key_where = f"{source}:{key_node.start_mark.line + 1}"
            if key in result:
                raise ConfigError(f"{key!r} is set twice", where=key_where, fix="remove one of the two lines")
            places[(*path, key)] = key_where
            result[key] = _construct(value_node, (*path, key), places, source)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*path, i), places, source) for i, child in enumerate(node.value)]
    try:
        return _Loader("").construct_object(node)
    except (yaml.YAMLError, ValueError):  # ValueError: an integer of 5000 digits
        kind = node.tag.rpartition(":")[2]
        fix = "put quotes around the value to use it as text"
        raise ConfigError(f"cannot read {node.value[:20]!r} as {kind}", where=where, fix=fix) from None


def apply_override(raw: dict[str, Any], places: Places, override: str) -> None:
    """Set the key of `section.key=value` in `raw`. The value is read as YAML; a number in the key indexes a list."""
    name, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not all(name.split(".")):
        raise ConfigError("an override has the form section.key=value", where=where, fix="write optim.lr=1e-6")
    try:
        root = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        fix = "put quotes around text with special characters, and close every [ and {"
        raise ConfigError("the value is not valid YAML", where=where, fix=fix) from None
    value = None if root is None else _construct(root, (), {}, where)
    path: KeyPath = ()
    target: Any = raw
    parts = name.split(".")
    for number, part in enumerate(parts, start=1):
        key: str | int = part
        if isinstance(target, list):
            key = int(part) if part.isdecimal() else part
            if not isinstance(key, int) or key >= len(target):
                what = f"{key!r} is not an index of this list, which has {len(target)} entries"
                raise ConfigError(what, where=where, fix="count from 0, or set the whole list")
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


def _problem(
    schema: type[BaseModel], loc: KeyPath, errors: Sequence[dict[str, Any]], places: Places, source: str
) -> str:
    error = errors[0]
    at = next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), source)
    name = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        return f"{at}: unknown key {name!r}; {suggest(schema, loc)}"
    if error["type"] == "missing":
        return f"{at}: {name} is required"
    if error["type"] == "model_type":
        fields = fields_at(schema, loc)
        keys = [f"{name}.{key}" for key in fields if fields[key].is_required()] or [f"{name}.{key}" for key in fields]
        return f"{at}: {name} is a section, not a value; set {' or '.join(keys)}"
    message = ", or ".join(dict.fromkeys(map(plain_problem, errors))).replace(", or must be", ", or")
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message += " (put quotes around text that looks like a number or true/false)"
    names = [n for e in errors if e["type"] == "literal_error" for n in re.findall("'([^']*)'", e["ctx"]["expected"])]
    close = difflib.get_close_matches(str(error["input"]), names, n=1)
    message += f" (did you mean {close[0]!r}?)" if close else ""
    got = f", got {error['input']!r}" if isinstance(error["input"], str | int | float | bool | None) else ""
    return f"{at}: {name}: {message}{got}" if name else f"{at}: {message}"


def _real_path(schema: type[BaseModel], loc: tuple[str | int, ...]) -> KeyPath:
    """Remove the union members that pydantic appends to the path of a key."""
    path: list[str | int] = []
    section: Any = schema
    for before, part in zip(("", *loc), loc, strict=False):
        if isinstance(section, type) and issubclass(section, BaseModel):
            if isinstance(before, int) and part in ("text", section.__name__):  # the kind of an entry of a list
                continue
            field = section.model_fields.get(str(part))
            path.append(part)
            section = section_of(field.annotation) if field else None
        elif isinstance(part, int):
            path.append(part)
            section = entry_of(section)
    return tuple(path)
