"""Select rows by conditions on their columns, as data.where says: `score_ratio >= 2`, `source != evol`."""

from __future__ import annotations

import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, DataError, did_you_mean
from preftune.formats.account import LEFT_OUT, LISTED, Account
from preftune.formats.parsers import Reading
from preftune.formats.values import as_number, kind_name
from preftune.sources.rows import Row

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
CONDITION = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator>>=|<=|!=|==|=|>|<)\s*(?P<value>.*?)\s*", re.DOTALL)
EQUALITY = ("==", "=", "!=")
MISSING = object()


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. `path` is a column, or a column and the fields inside it (info.split)."""

    text: str
    path: tuple[str, ...]
    operator: str
    value: Any

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row with this column satisfies the condition. Raises ValueError if they cannot be compared.

        Numbers are compared as numbers, also if the column is the text of a number. A missing value (null, NaN or
        blank text) satisfies only `!=`.
        """
        value = self.found(row)
        missing = value is MISSING or _is_missing(value)
        if missing or self.value is None:
            same = missing and self.value is None
            return not same if self.operator == "!=" else same and self.operator in EQUALITY
        left, right = _number(value), _number(self.value)
        if left is not None and right is not None:
            return OPERATORS[self.operator](left, right)
        if self.operator not in EQUALITY:
            if str(value).strip().lower() == "nan":
                return False
            raise ValueError(f"{'.'.join(self.path)!r} is {kind_name(value)} {value!r:.40}, which has no order")
        if isinstance(self.value, bool) or isinstance(value, bool):
            return OPERATORS[self.operator](_truth(value), _truth(self.value))
        return OPERATORS[self.operator](str(value), str(self.value))

    def found(self, row: Mapping[str, Any]) -> Any:
        """Return the value of the column, or MISSING."""
        if ".".join(self.path) in row:
            return row[".".join(self.path)]
        value: Any = row
        for name in self.path:
            if not isinstance(value, Mapping) or name not in value:
                return MISSING
            value = value[name]
        return value


def _is_missing(value: Any) -> bool:
    blank = isinstance(value, str) and not value.strip()
    return value is None or blank or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> Any:
    """Return a number, also from its text, or None. Integers stay exact."""
    if isinstance(value, int | float):
        return None if isinstance(value, bool) else value
    try:
        return int(value) if isinstance(value, str) else as_number(value)
    except ValueError:
        return as_number(value)


def _truth(value: Any) -> Any:
    """Return true/false for the ways of writing them, else the text of the value."""
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(
        str(value).strip().lower(), str(value)
    )


def conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Read the conditions of data.where. Raises ConfigError for one that cannot be read."""
    return tuple(_condition(text) for text in texts)


def _condition(text: str) -> Condition:
    match = CONDITION.fullmatch(text)
    if match is None or not match["value"]:
        fix = 'write a column, one of >=, <=, ==, !=, >, < and a value, such as "score_ratio >= 2" or "source == evol"'
        raise ConfigError(f"{text!r} is not a condition", where="data.where", fix=fix)
    if match["value"][0] in "<>=!":  # `!==` and `=>` are not operators
        fix = f"use one of {', '.join(OPERATORS)}, and put a text that begins with <, >, = or ! in quotes"
        raise ConfigError(f"{text!r} has the value {match['value']!r}", where="data.where", fix=fix)
    try:
        value = json.loads(match["value"])
    except ValueError:
        value = match["value"].strip("'\"")
    value = None if _is_missing(value) else value
    if isinstance(value, list | dict):
        fix = "compare with a number, a text, true, false or null"
        raise ConfigError(f"{text!r} compares with a {kind_name(value)}", where="data.where", fix=fix)
    sign = match["operator"]
    if sign not in EQUALITY and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(
            f"{text!r} compares with {match['value']}, which is not a number",
            where="data.where",
            fix="use == or != for texts, true, false and null",
        )
    return Condition(text.strip(), tuple(match["column"].split(".")), sign, value)


def filter_of(reading: Reading, account: Account) -> Filter:
    """Return the filter that data.where and data.drop describe."""
    return Filter(conditions(reading.where), account, frozenset(reading.drop), reading.limit is not None)


def row_name(origin: str) -> str:
    """Return an origin with the absolute path of its file, so that it names the row in every working directory."""
    file, colon, line = origin.rpartition(":")
    return f"{_absolute(file)}:{line}" if colon else origin


@lru_cache(maxsize=256)
def _absolute(file: str) -> str:
    """Return the absolute path of a file; a name of the Hub or of an object in memory stays as it is."""
    return os.path.abspath(file) if os.path.exists(file) else file


def drop_list(path: str) -> tuple[str, ...]:
    """Read the rows that a file of data.drop lists, one per line. Raises ConfigError if it has none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a text file with one FILE:LINE per line"
        raise ConfigError(f"the list of rows cannot be read: {error}", where=f"data.drop {path}", fix=fix) from None
    rows = [line.strip() for line in lines if line.strip()]
    wrong = next((row for row in rows if not re.fullmatch(r".+:[^:]+", row)), None)
    if wrong is not None or not rows:
        what = "the file lists no rows" if wrong is None else f"{wrong!r} does not name a row"
        fix = "write one FILE:LINE per line, such as data/pairs.jsonl:12, as the pair browser of a report does"
        raise ConfigError(what, where=f"data.drop {path}", fix=fix)
    return tuple(dict.fromkeys(map(row_name, rows)))


@dataclass(slots=True)
class Filter:
    """The rows for which all conditions hold and that are not in `listed`. Other rows are counted in the account."""

    conditions: Sequence[Condition]
    account: Account
    listed: frozenset[str] = frozenset()  # rows to leave out, see `row_name`
    is_limited: bool = False  # not all rows are read, so listed rows may be missing
    unlisted: set[str] = field(init=False)
    seen: set[str] = field(default_factory=set)  # conditions whose column a row has
    columns: dict[str, None] = field(default_factory=dict)

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            name = row_name(row.origin) if self.listed else ""
            if name in self.listed:
                self.unlisted.discard(name)
                self.account.read += 1
                self.account.drop(LISTED, row.origin)
                continue
            failed = None if row.fault else self._failed(row)
            if failed is None:
                yield row
            else:
                self.account.read += 1
                self.account.drop(f"{LEFT_OUT}{failed.text}", row.origin)

    def _failed(self, row: Row) -> Condition | None:
        """Return the first condition that does not hold, or None."""
        self.columns.update(dict.fromkeys(row.value))
        for condition in self.conditions:
            if condition.found(row.value) is not MISSING:
                self.seen.add(condition.text)
            try:
                if not condition.holds(row.value):
                    return condition
            except ValueError as error:
                fix = "compare it with == or !=, or remove the condition"
                raise DataError(f"{condition.text!r}: {error}", where=row.origin, fix=fix) from None
        return None

    def __post_init__(self) -> None:
        self.unlisted = set(self.listed)

    def require_columns(self) -> None:
        """Raise DataError for a condition on a column that no row has. Note the listed rows that were not read."""
        self.account.unlisted = [] if self.is_limited else sorted(self.unlisted)
        for condition in self.conditions:
            if self.columns and condition.text not in self.seen:
                column = ".".join(condition.path)
                what = f"data.where tests the column {column!r}, which no row has"
                raise DataError(what, where=self.account.source, fix=did_you_mean(column, self.columns))
