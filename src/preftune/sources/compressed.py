"""Open data files that may be compressed (.gz, .bz2, .xz, .zst)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
#: What the readers raise for a file that is damaged or cut short.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def kind_of(path: Path) -> tuple[str, str]:
    """The suffix that says what a file holds, and the one of its compression or "": (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), packed


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked. Reading raises one of DAMAGED if the file is damaged."""
    packed = kind_of(path)[1]
    if packed == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if packed == ".bz2":
        return bz2.open(path, "rb")
    if packed == ".xz":
        return lzma.open(path, "rb")
    if packed:
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")
