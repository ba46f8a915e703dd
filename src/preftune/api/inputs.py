"""Convert arguments to values that a config can hold: rows and functions to names, folders to text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from preftune.api.results import PairsResult, SampleResult, Table, TrainResult
from preftune.config.data import SourceConfig
from preftune.errors import ConfigError, DataError
from preftune.in_memory import Object, as_function, as_rows

Held = dict[str, Object]  # the rows, functions and models of one call, by the names that the config uses


def data_name(data: Any, label: str, held: Held) -> Any:
    """Return a name, or a list of sources, unchanged. Add rows in memory to `held` and return their name."""
    if _is_path(data):
        return os.fspath(data)
    if isinstance(data, list | tuple) and data and all(map(_is_path, data)):
        return [os.fspath(path) for path in data]
    if isinstance(data, list | tuple) and data and all(_is_path(entry) or _is_source(entry) for entry in data):
        return [_source(entry, label, held) for entry in data]
    rows = as_rows(_rows_of(data, label), label)
    if not rows.rows:
        raise DataError("the data are empty", where=label, fix="pass at least one row")
    held[rows.name] = rows
    return rows.name


def prompts_name(prompts: Any, label: str, held: Held) -> Any:
    """Like `data_name`, but a list may also hold prompts, each a text or a list of messages."""
    if isinstance(prompts, list | tuple) and prompts and all(isinstance(p, str | list | tuple) for p in prompts):
        prompts = [{"prompt": prompt} for prompt in prompts]
    return data_name(prompts, label, held)


def function_name(value: Any, held: Held, exact: bool = True) -> str:
    """Return a name unchanged. Add a function to `held` and return its name, which includes its source if `exact`."""
    if not callable(value):
        return os.fspath(value) if isinstance(value, os.PathLike) else value  # type: ignore[no-any-return]
    function = as_function(value)
    name = base = function.name_with_hash if exact else function.name
    number = 1
    while name in held and held[name] != function:  # functions with the same source that refer to different objects
        number += 1
        name = f"{base}-{number}"
    held[name] = function
    return name


def folder_name(value: Any, where: str) -> str:
    """Return a model folder, a run folder or a Hub id as text. Raises ConfigError for a model in memory."""
    if _is_path(value):
        return str(os.fspath(value))
    if is_model(value):
        what = f"expected a folder, got a model in memory ({type(value).__name__})"
        fix = "call model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER), and pass FOLDER"
        raise ConfigError(what, where=where, fix=fix)
    what = f"expected a model folder, a run folder or a Hub id, got {type(value).__name__}"
    raise ConfigError(what, where=where, fix='pass e.g. "runs/dpo/final"')


def is_model(value: Any) -> bool:
    """Return whether an argument is a model in memory, and not a folder, a run folder or a function."""
    return callable(getattr(value, "parameters", None)) and callable(getattr(value, "save_pretrained", None))


def plain_settings(value: Any) -> Any:
    """Convert settings to the types of a config: paths to text, sections to dicts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain_settings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    if hasattr(value, "model_dump"):  # a section as an object
        return value.model_dump(exclude_unset=True)
    return value


def _is_source(value: Any) -> bool:
    """Return whether an entry of a list is a section with the settings of a source, and not a row of data."""
    if isinstance(value, SourceConfig):
        return True
    return isinstance(value, Mapping) and "path" in value and set(value) <= set(SourceConfig.model_fields)


def _source(entry: Any, label: str, held: Held) -> Any:
    """Return an entry of data.train or data.eval. The path of a section may be rows in memory."""
    if _is_path(entry):
        return os.fspath(entry)
    if isinstance(entry, SourceConfig):
        return plain_settings(entry)
    others = {name: value for name, value in entry.items() if name != "path"}
    return {"path": data_name(entry["path"], label, held), **plain_settings(others)}


def _is_path(value: Any) -> bool:
    in_memory = isinstance(value, SampleResult | PairsResult) and value.path is None
    return isinstance(value, str | os.PathLike) and not in_memory


def _rows_of(data: Any, label: str) -> Iterable[Any]:
    """Return the rows of a list, a preftune table, or a table of datasets, pandas, polars or pyarrow."""
    if isinstance(data, SampleResult | PairsResult):
        return data.rows
    if isinstance(data, Table):
        return data
    package = type(data).__module__.partition(".")[0]
    if isinstance(data, Mapping):
        raise _not_rows(data, label, package)
    if package == "pandas" and hasattr(data, "to_dict") and hasattr(data, "columns"):
        frame = data.astype(object)
        return frame.where(frame.notna(), None).to_dict("records")  # type: ignore[no-any-return]
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
        return DataError(
            f"got a {kind} with the splits {splits}", where=label, fix=f"pass one of them: dataset[{first!r}]"
        )
    columns = isinstance(data, Mapping) and data and all(isinstance(value, list) for value in data.values())
    fix = "pass datasets.Dataset.from_dict(columns)" if columns else 'pass e.g. [{"prompt": ...}, ...]'
    return DataError(f"expected a list of dicts, a datasets.Dataset or a file, got {kind}", where=label, fix=fix)
