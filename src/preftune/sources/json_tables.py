"""Find the records of a JSON file whose root is an object, as pandas and the API of the Hub write them."""

from __future__ import annotations

from typing import Any


def records_of(content: dict[str, Any], lists: list[str]) -> list[dict[str, Any]] | str | None:
    """Return the records of the root object, the name of the list that contains them, or None if neither is clear.

    `lists` are the names of the lists in the object. These forms are known:

    {"data": [record, ...]}                                 one list, or one list of objects next to lists of values
    {"prompt": [...], "chosen": [...]}                      columns (`Dataset.to_dict`)
    {"prompt": {"0": ..., "1": ...}, ...}                   columns (pandas)
    {"0": record, "1": record}                              records with a key (pandas, orient="index")
    {"columns": [...], "index": [...], "data": [[...]]}     rows of values (pandas, orient="split")
    {"features": [...], "rows": [{"row": record}, ...]}     rows of the API of the Hub's dataset viewer
    """
    if {"features", "rows"} <= content.keys() and all(
        isinstance(row, dict) and "row" in row for row in content["rows"]
    ):
        cut = [row["row"] for row in content["rows"] if not row.get("truncated_cells")]
        return cut if len(cut) == len(content["rows"]) and all(isinstance(row, dict) for row in cut) else None
    if set(content) in ({"columns", "data"}, {"columns", "data", "index"}) and len(lists) == len(content):
        return _split(content["columns"], content["data"])
    if len(lists) == 1:
        return lists[0]
    if not lists:
        return _objects(content)
    objects = [key for key in lists if content[key] and all(isinstance(item, dict) for item in content[key])]
    if len(objects) == 1 and not any(
        isinstance(item, dict | list) for key in lists if key != objects[0] for item in content[key]
    ):
        return objects[0] if len({len(content[key]) for key in lists}) > 1 else None
    return _columns(content) if len(lists) == len(content) else None


def _split(columns: list[Any], rows: list[Any]) -> list[dict[str, Any]] | None:
    names = [column for column in columns if isinstance(column, str)]
    if len(set(names)) < len(columns) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return None
    return [dict(zip(names, row, strict=True)) for row in rows]


def _columns(content: dict[str, list[Any]]) -> list[dict[str, Any]] | None:
    """Return the records of columns of the same length, of which at least one has only texts or numbers."""
    if len({len(values) for values in content.values()}) != 1:
        return None
    if not any(values and all(isinstance(v, str | int | float) for v in values) for values in content.values()):
        return None  # they may be several lists of records: {"train": [...], "test": [...]}
    return [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]


def _objects(content: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the records of an object that has only objects: columns with row numbers as keys, or records."""
    values = list(content.values())
    if not values or not all(isinstance(value, dict) and value for value in values):
        return None
    numbered = [all(key.isdigit() for key in value) for value in values]
    if all(numbered) and all(value.keys() == values[0].keys() for value in values):
        return [{column: value[number] for column, value in content.items()} for number in values[0]]
    if any(numbered) or all(isinstance(item, list) for value in values for item in value.values()):
        return None  # the latter may be several tables: {"train": {"prompt": [...]}, "test": {...}}
    shared = set(values[0]).intersection(*values[1:])
    return values if len(values) > 1 and shared else None
