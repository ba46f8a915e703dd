"""Open data files, decompressing .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from preftune.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
MOST_EXPANDED = 200  # text usually takes a tenth of its size, very repetitive text a hundredth
BUFFER_BYTES = 1 << 20
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
    """Open a file and decompress it while reading.

    Reading a damaged file raises one of READ_ERRORS, and reading a decompression bomb raises DataError: a local file
    that grows by more than MOST_EXPANDED and beyond a quarter of the memory.
    """
    compression = file_suffixes(path)[1]
    raw: Any = path if isinstance(path, Path) and compression else path.open("rb")
    if not compression:
        return cast(IO[bytes], raw)
    return io.BufferedReader(_Bounded(_decompressed(raw, compression), path), BUFFER_BYTES)


UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_text(path: AnyFile) -> IO[bytes]:
    """Open a text file as `open_bytes` does. UTF-16 with a byte order mark is read whole, and returned as UTF-8.

    Excel ("Unicode Text") and PowerShell (`>`) write UTF-16.
    """
    file = open_bytes(path)
    buffered = file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file), BUFFER_BYTES)
    if bytes(buffered.peek(2)[:2]) not in UTF_16:
        return buffered
    with buffered:
        try:
            return io.BytesIO(buffered.read().decode("utf-16").encode())
        except UnicodeDecodeError as error:
            what = f"the text is marked as UTF-16, but it is damaged at byte {error.start}"
            raise DataError(what, where=str(path), fix="save it as UTF-8") from None


def _decompressed(raw: Any, compression: str) -> Any:
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(raw, "rb"))
    if compression == ".bz2":
        return cast(IO[bytes], bz2.open(raw, "rb"))
    if compression == ".xz":
        return lzma.open(raw, "rb")
    import pyarrow

    source = str(raw) if isinstance(raw, Path) else pyarrow.PythonFile(raw, "r")
    return pyarrow.input_stream(source, compression="zstd")


class _Bounded(io.RawIOBase):
    """Reads `source`, of a local file up to a number of bytes that depends on the size of the compressed file.

    A remote file is never kept in memory as a whole, so it has no limit.
    """

    def __init__(self, source: IO[bytes], path: AnyFile) -> None:
        self.source, self.path = source, path
        self.limit: float = math.inf
        if isinstance(path, Path):
            self.limit = max(MOST_EXPANDED * path.stat().st_size, memory_bytes() // 4)
        self.left = self.limit

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
