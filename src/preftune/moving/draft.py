"""The config that is built from another program's, and an account of every one of its keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from preftune.errors import ConfigError

Kind = Literal["set", "default", "same", "off", "lost", "unknown"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of some keys of the other config.

    kind    set: they set `ours`; default: absent, and the program's default is written to `ours`; same: no setting is
            needed; off: a feature that is turned off; lost: not carried over; unknown: a key that is not recognised
    keys    the keys
    theirs  the keys with their values, as text
    ours    the key of preftune, for `set` and `default`
    note    why, and what to do instead
    """

    kind: Kind
    keys: tuple[str, ...]
    theirs: str
    ours: str = ""
    note: str = ""


@dataclass
class Draft:
    """A config under construction.

    tool        name of the other program, for texts
    values      its config, as one flat mapping; `take` marks a key as used
    defaults    its defaults for absent keys
    method      the command of preftune that reads the result
    config      the result
    entries     the account
    objective   lines about the objective: where it differs from its name or from preftune's
    refused     why the objective cannot be trained, if so
    names       for texts: keys that the file has under an older name
    unread      keys with a value that cannot be read
    """

    tool: str
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    method: str = "dpo"
    processes: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    objective: list[str] = field(default_factory=list)
    refused: str = ""
    used: set[str] = field(default_factory=set)
    names: Mapping[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def has(self, key: str) -> bool:
        """Return whether a key is set to something other than null."""
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        """Return the value of a key, or the program's default."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def on(self, key: str) -> bool:
        """Return whether a switch is on."""
        return truth(self.get(key))

    def number(self, key: str) -> float | None:
        """Return the value of a key as a number. One that is not a number is listed as not carried over."""
        value = self.get(key)
        if value is None or key in self.used:
            return None
        number = as_number(value)
        if number is None:
            self.lose(key, note="the value is not a number; set it yourself")
            self.unread.add(key)
        return number

    def put(self, path: str, value: Any, *keys: str, note: str = "") -> None:
        """Set the key `path` of preftune from `keys`. Without any of them in the file, it is the program's default.

        Nothing is set if one of them has a value that cannot be read.
        """
        if self.unread & set(keys):
            return
        section, _, name = path.partition(".")
        target = self.config.setdefault(section, {}) if name else self.config
        target[name or section] = value
        present = tuple(key for key in keys if self.has(key))
        theirs = ", ".join(self.shown(key) for key in present)
        self._add(Entry("set" if present else "default", present or keys, theirs or keys[0], path, note), present)

    def keep(self, *keys: str, note: str) -> None:
        """Account for keys that need no setting."""
        self._account("same", keys, note)

    def lose(self, *keys: str, note: str) -> None:
        """Account for keys that are not carried over."""
        self._account("lost", keys, note)

    def _account(self, kind: Kind, keys: Iterable[str], note: str) -> None:
        present = tuple(dict.fromkeys(key for key in keys if self.has(key) and key not in self.used))
        if present:
            self._add(Entry(kind, present, ", ".join(map(self.shown, present)), note=note), present)

    def _add(self, entry: Entry, present: tuple[str, ...]) -> None:
        self.entries.append(entry)
        self.used.update(present)

    def refuse(self, what: str) -> None:
        """Note that preftune cannot train the objective."""
        self.refused = self.refused or what

    def shown(self, key: str) -> str:
        """Return `key: value` on one short line."""
        return f"{self.names.get(key, key)}: {short(self.values[key])}"

    def finish(self, same: Mapping[str, str], lost: Mapping[str, str]) -> None:
        """Account for all other keys with the reasons in `same` and `lost`. The rest is off, empty or unknown."""
        for key, value in self.values.items():
            if key in self.used:
                continue
            if value is None or value in ("", [], {}):
                self.entries.append(Entry("off", (key,), key, note="empty"))
            elif (reason := reason_of(key, same)) is not None:
                self.entries.append(Entry("same", (key,), self.shown(key), note=reason))
            elif (reason := reason_of(key, lost)) is not None:
                kind: Kind = "lost" if truth(value) else "off"
                self.entries.append(Entry(kind, (key,), self.shown(key), note=reason))
            else:
                self.entries.append(Entry("unknown", (key,), self.shown(key)))
            self.used.add(key)

    def listed(self, kind: Kind) -> list[Entry]:
        """Return the entries of a kind."""
        return [entry for entry in self.entries if entry.kind == kind]


def reason_of(key: str, reasons: Mapping[str, str]) -> str | None:
    """Return the reason of a key. An entry `name_*` is for all keys that begin with `name_`."""
    prefixes = (f"{key[:end]}*" for end in range(len(key), 0, -1))
    return reasons.get(key, next((reasons[prefix] for prefix in prefixes if prefix in reasons), None))


def truth(value: Any) -> bool:
    """Return whether a value turns something on: false for null, 0, "", "false", "no" and "none"."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "no", "none", "null", "0", "off")
    return bool(value)


def as_number(value: Any) -> float | None:
    """Return a value as a number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and "e" not in str(value).lower() and "." not in str(value) else number


def as_list(value: Any) -> list[Any]:
    """Return a value as a list: a list, the items of `a, b` or of `[a, b]` in text, or one value."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]")
        return [item.strip().strip("'\"") for item in text.split(",") if item.strip()]
    return [] if value is None else [value]


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping that may be written as JSON text. Raises ConfigError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigError(f"cannot read {value[:40]!r} as JSON", where=where, fix="correct this value") from None
    if not isinstance(value, dict):
        raise ConfigError("must be a mapping", where=where, fix="correct this value")
    return value


def short(value: Any) -> str:
    """Return a value on one line of at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
