"""Open data files, decompressing .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
#: What reading raises for a file that is damaged or truncated.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


class AnyFile(Protocol):
    """What the readers need of a file: a Path, or a RemoteFile."""

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> list[str]: ...

    def open(self, mode: Literal["rb"], /) -> Any: ...


def file_suffixes(path: AnyFile) -> tuple[str, str]:
    """Return the suffix of the file format and that of the compression, or "": (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def open_bytes(path: AnyFile) -> IO[bytes]:
    """Open a file and decompress it while reading. Reading a damaged file raises one of READ_ERRORS."""
    compression = file_suffixes(path)[1]
    raw: Any = path if isinstance(path, Path) and compression else path.open("rb")
    if not compression:
        return cast(IO[bytes], raw)
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(raw, "rb"))
    if compression == ".bz2":
        return cast(IO[bytes], bz2.open(raw, "rb"))
    if compression == ".xz":
        return cast(IO[bytes], lzma.open(raw, "rb"))
    import pyarrow

    source = str(raw) if isinstance(path, Path) else pyarrow.PythonFile(raw, "r")
    return cast(IO[bytes], io.BufferedReader(pyarrow.input_stream(source, compression="zstd")))
