"""Open data files, decompressing .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from pathlib import Path
from typing import IO, Any, cast

from preftune.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
MOST_EXPANDED = 200  # text usually takes a tenth of its size, very repetitive text a hundredth
BUFFER_BYTES = 1 << 20
#: What reading raises for a file that is damaged or truncated.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def file_suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the file format and that of the compression, or "": (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file and decompress it while reading.

    Reading a damaged file raises one of READ_ERRORS, and reading a decompression bomb raises DataError: a file that
    grows by more than MOST_EXPANDED and beyond a quarter of the memory.
    """
    compression = file_suffixes(path)[1]
    if not compression:
        return path.open("rb")
    return io.BufferedReader(_Bounded(_decompressed(path, compression), path), BUFFER_BYTES)


def _decompressed(path: Path, compression: str) -> IO[bytes]:
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".bz2":
        return bz2.open(path, "rb")
    if compression == ".xz":
        return lzma.open(path, "rb")
    import pyarrow

    return cast(IO[bytes], pyarrow.input_stream(str(path), compression="zstd"))


class _Bounded(io.RawIOBase):
    """Reads `source`, up to a number of bytes that depends on the size of the compressed file."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self.source, self.path = source, path
        self.left = self.limit = max(MOST_EXPANDED * path.stat().st_size, memory_bytes() // 4)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.source.read(memoryview(buffer).nbytes)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(
                f"the decompressed file has more than {self.limit / 1e9:.3g} GB",
                where=str(self.path),
                why=f"that is more than {MOST_EXPANDED} times its size and more than a quarter of the memory, so the "
                "file may be made to stop programs",
                fix="decompress it yourself if you trust it",
            )
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.source.close()
        super().close()


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 2**30
