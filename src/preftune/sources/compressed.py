"""Open data files, decompressing .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
#: What reading raises for a file that is damaged or truncated.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def file_suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the file format and that of the compression, or "": (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file and decompress it while reading. Reading a damaged file raises one of READ_ERRORS."""
    compression = file_suffixes(path)[1]
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".bz2":
        return bz2.open(path, "rb")
    if compression == ".xz":
        return lzma.open(path, "rb")
    if compression:
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")
