"""From what a caller passes to what a config can hold: rows and functions get names, folders become text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from preftune.api.results import PairsResult, SampleResult, Table, TrainResult
from preftune.errors import ConfigError, DataError
from preftune.objects import Object, as_function, as_rows

Held = dict[str, Object]  # what the names of one call stand for


def data_name(data: Any, label: str, held: Held) -> Any:
    """A file, folder, Hub id or list of files as it is; rows in memory by a name that `held` explains."""
    if _is_path(data):
        return os.fspath(data)
    if isinstance(data, list | tuple) and data and all(map(_is_path, data)):
        return [os.fspath(one) for one in data]
    rows = as_rows(_rows_of(data, label), label)
    if not rows.rows:
        raise DataError("no rows: the data are empty", where=label)
    held[rows.name] = rows
    return rows.name


def prompts_name(prompts: Any, label: str, held: Held) -> Any:
    """As `data_name`; a list may hold prompts alone, each a text or a list of messages."""
    if isinstance(prompts, list | tuple) and prompts and all(isinstance(one, str | list | tuple) for one in prompts):
        prompts = [{"prompt": one} for one in prompts]
    return data_name(prompts, label, held)


def function_name(value: Any, held: Held, exact: bool = True) -> str:
    """A name as it is; a function by a name that `held` explains. `exact`: another name for another source."""
    if not callable(value):
        return os.fspath(value) if isinstance(value, os.PathLike) else value  # type: ignore[no-any-return]
    function = as_function(value)
    name = base = function.name_with_hash if exact else function.name
    number = 1
    while name in held and held[name] != function:  # two of one source, made with different objects
        number += 1
        name = f"{base}-{number}"
    held[name] = function
    return name


def folder_name(value: Any, where: str) -> str:
    """A model folder, a run or a Hub id as text. Raises ConfigError for a model in memory."""
    if _is_path(value):
        return str(os.fspath(value))
    if is_model(value):
        raise ConfigError(
            f"a model in memory ({type(value).__name__}), where a folder is needed",
            where=where,
            fix="write it with model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER), and give FOLDER",
        )
    raise ConfigError(
        f"must be a model folder, a run or a Hub id, not {type(value).__name__}",
        where=where,
        fix='e.g. "runs/dpo/final"',
    )


def is_model(value: Any) -> bool:
    """Whether an argument is a model in memory, and not a folder, a run or a function."""
    return callable(getattr(value, "parameters", None)) and callable(getattr(value, "save_pretrained", None))


def plain_settings(value: Any) -> Any:
    """Settings in the types of a config: paths as text, sections as dicts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain_settings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    if hasattr(value, "model_dump"):  # a section that was built as an object
        return value.model_dump(exclude_unset=True)
    return value


def _is_path(value: Any) -> bool:
    in_memory = isinstance(value, SampleResult | PairsResult) and value.path is None
    return isinstance(value, str | os.PathLike) and not in_memory


def _rows_of(data: Any, label: str) -> Iterable[Any]:
    """The rows of a list, a table of ours, datasets, pandas, polars or pyarrow."""
    if isinstance(data, SampleResult | PairsResult):
        return data.rows
    if isinstance(data, Table):
        return data
    package = type(data).__module__.partition(".")[0]
    if isinstance(data, Mapping):
        raise _not_rows(data, label, package)
    if package == "pandas" and hasattr(data, "to_dict") and hasattr(data, "columns"):
        known = data.astype(object)
        return known.where(known.notna(), None).to_dict("records")  # type: ignore[no-any-return]
    for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if callable(getattr(data, method, None)):
            return getattr(data, method)()  # type: ignore[no-any-return]
    if isinstance(data, bytes | TrainResult) or not isinstance(data, Iterable):
        raise _not_rows(data, label, package)
    return data


def _not_rows(data: Any, label: str, package: str) -> DataError:
    kind = type(data).__name__
    if package == "datasets":
        splits = ", ".join(map(str, data))
        first = next(iter(data), "train")
        return DataError(f"a {kind} with the splits {splits}", where=label, fix=f"give one of them: dataset[{first!r}]")
    columns = isinstance(data, Mapping) and data and all(isinstance(value, list) for value in data.values())
    fix = "datasets.Dataset.from_dict(columns) makes rows of columns" if columns else 'e.g. [{"prompt": ...}, ...]'
    return DataError(f"rows are a list of dicts, a datasets.Dataset or a file, not {kind}", where=label, fix=fix)
