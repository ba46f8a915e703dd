"""Read rows of CSV, TSV, Parquet and Arrow files. A duplicate column is an error."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.sources.compressed import AnyFile, open_text
from preftune.sources.json_rows import MAX_LINE_BYTES, decoded, describe_json_error, loads
from preftune.sources.rows import Row


def _duplicate_column(column: str, where: str) -> DataError:
    why = "it is not clear which of the two to read"
    return DataError(f"column {column!r} appears twice", where=where, why=why, fix="remove or rename one of them")


def separated(path: AnyFile, name: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, or of a TSV file with the quoting of CSV; every cell is text.

    If the header has only one column with `delimiter`, semicolons, tabs or vertical bars may separate the columns
    instead: Excel writes semicolons in many countries.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="") as file:
        delimiter, skipped = _delimiter(path, delimiter)
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            yield from _table(reader, name, delimiter, skipped)
        except UnicodeDecodeError:
            with open_text(path) as raw:
                for _ in decoded(raw, name):  # raises DataError with the line
                    pass
            raise
        except csv.Error as error:
            if "field larger" in str(error):
                what, fix = f"a cell is longer than {MAX_LINE_BYTES // 1_000_000} MB", "split or remove the row"
                raise DataError(what, where=f"{name}:{reader.line_num}", fix=fix) from None
            if reader.line_num <= 1:
                with io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="") as again:
                    _check_header([again.readline().rstrip("\r\n")], f"{name}:1", delimiter)
            fix = "quote cells that contain quotes, separators or line breaks, and double the quotes inside them"
            raise DataError(f"broken CSV: {error}", where=f"{name}:{reader.line_num}", fix=fix) from None


def _delimiter(path: AnyFile, usual: str) -> tuple[str, int]:
    """Return the character that separates the columns, and the number of lines before the header.

    It is `usual`, the character in Excel's first line `sep=;`, or the only one of SEPARATOR_NAMES that splits a header
    of one column into columns with different names.
    """
    with open_text(path) as file:
        line = file.readline(MAX_LINE_BYTES).removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").rstrip("\r\n")
    if re.fullmatch(r"sep=.", line):
        return line[-1], 1
    splits = {}
    for character in SEPARATOR_NAMES:
        with suppress(csv.Error):
            splits[character] = next(csv.reader([line], strict=True, delimiter=character), [])
    others = [character for character, names in splits.items() if character != usual and len(names) > 1]
    if len(splits.get(usual, [""])) != 1 or len(others) != 1:
        return usual, 0
    names = [name.strip() for name in splits[others[0]]]
    return (others[0], 0) if all(names) and len(set(names)) == len(names) else (usual, 0)


def _table(reader: Any, name: str, delimiter: str, skipped: int) -> Iterator[Row]:
    header: list[str] = []
    first_line = 1 + skipped
    for cells in reader:
        origin = f"{name}:{first_line}"
        first_line = reader.line_num + 1 + skipped
        if not cells:  # blank line
            continue
        if not header:
            header = cells
            _check_header(header, origin, delimiter)
        elif len(cells) != len(header):
            yield Row({}, origin, f"the row has {len(cells)} columns, but the header has {len(header)}")
        else:
            yield Row(dict(zip(header, cells, strict=True)), origin)


SEPARATOR_NAMES = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


def _check_header(header: list[str], where: str, delimiter: str) -> None:
    for other, words in SEPARATOR_NAMES.items():
        if len(header) == 1 and other != delimiter and other in header[0]:
            fix = "save the file with commas, or with tabs as .tsv; pandas: pd.read_csv(FILE, sep=...).to_csv(...)"
            what = f"the columns seem to be separated by {words}, not by {SEPARATOR_NAMES[delimiter]}: {header[0]!r}"
            raise DataError(what, where=where, fix=fix)
    for number, column in enumerate(header, start=1):
        if not column.strip():
            fix = "give the column a name, or remove it (if it is the index of pandas, use to_csv(..., index=False))"
            raise DataError(f"column {number} of {len(header)} has no name", where=where, fix=fix)
        if column in header[: number - 1]:
            raise _duplicate_column(column, where)


def parquet(path: AnyFile, name: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file; an origin ends with the number of the row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(_opened(path)) as file:
            yield from _records(file.schema_arrow, file.iter_batches(batch_size=1024), name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a readable Parquet file: {error}"
        raise DataError(what, where=name, fix="write or download the file again") from error


def arrow(path: AnyFile, name: str) -> Iterator[Row]:
    """Yield the rows of an Arrow file (stream or file format), as the `datasets` library writes them."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) if isinstance(path, Path) else pyarrow.PythonFile(_opened(path)) as file:
            try:
                reader = pyarrow.ipc.open_stream(file)
                batches = iter(reader)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield from _records(reader.schema, batches, name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a readable Arrow file: {error}"
        raise DataError(what, where=name, fix="write or download the file again") from error


def _opened(path: AnyFile) -> Any:
    """Return a path unchanged, and any other file open."""
    return path if isinstance(path, Path) else path.open("rb")


def _records(schema: Any, batches: Iterable[Any], name: str) -> Iterator[Row]:
    if duplicate := _first_duplicate(schema):
        raise _duplicate_column(duplicate, name)
    encoded = {field.name: decode for field in schema if (decode := _decoder(field.type))}
    for number, value in enumerate((value for batch in batches for value in batch.to_pylist()), start=1):
        origin = f"{name}:{number}"
        try:
            value |= {key: decode(value[key]) for key, decode in encoded.items()}
        except (ValueError, RecursionError) as error:
            yield Row({}, origin, describe_json_error(error))
        else:
            yield Row(value, origin)


def _first_duplicate(fields: Iterable[Any], path: str = "") -> str:
    """Return the first field name that occurs twice in one struct, as column.field, or ""."""
    names = set[str]()
    for field in fields:
        full = f"{path}{field.name}"
        if field.name in names:
            return full
        names.add(field.name)
        if inner := _first_duplicate(_struct_fields(field.type), f"{full}."):
            return inner
    return ""


def _struct_fields(kind: Any) -> list[Any]:
    """Return the fields of a struct type, or of the structs in a list or map type."""
    if _is_list(kind):
        return _struct_fields(kind.value_type)
    if _types().is_map(kind):
        return _struct_fields(kind.item_type)
    return [kind.field(i) for i in range(kind.num_fields)] if _types().is_struct(kind) else []


def _is_list(kind: Any) -> bool:
    types = _types()
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _types() -> Any:
    import pyarrow.types

    return pyarrow.types


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """Return a function that decodes JSON text (Arrow's type `json`) inside values of this type, or None."""
    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else loads(value)
    if _is_list(kind):
        item = _decoder(kind.value_type)
        return item and (lambda value: None if value is None else [item(one) for one in value])
    if _types().is_struct(kind):
        fields = {f.name: decode for f in _struct_fields(kind) if (decode := _decoder(f.type))}
        if fields:
            return lambda value: None if value is None else value | {k: d(value[k]) for k, d in fields.items()}
    return None
