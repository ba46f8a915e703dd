"""Files at URLs such as s3://bucket/file.jsonl or hf://datasets/org/name/file.parquet, read with fsspec."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from preftune.errors import DataError, writing
from preftune.files import cache_folder
from preftune.sources.files import is_data_file

URL = re.compile(r"^(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<path>.*)$", re.DOTALL)
HTTP = re.compile(r"https?://")
MAGIC = re.compile(r"[*?\[]")
FIX_SPACE = "free disk space, or set PREFTUNE_CACHE to a different folder"


def is_url(name: str) -> bool:
    """Return whether the name of a source is a URL."""
    return URL.match(name) is not None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a URL. It has what the readers of files need of a Path: its name, its suffixes, and `open`.

    stamp   a hash of what the server says about its content: size, ETag, date
    """

    url: str
    system: Any
    path: str
    stamp: str

    @property
    def name(self) -> str:
        query = "?" if HTTP.match(self.url) else "\0"
        return PurePosixPath(self.path.partition(query)[0]).name

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    def open(self, _mode: Literal["rb"] = "rb", /) -> IO[bytes]:
        """Open the file for reading. Its parts are fetched as they are read."""
        with _reachable(self.url):
            return io.BufferedReader(_Raw(self.system.open(self.path, "rb"), self.url), 1 << 20)

    def local(self) -> Path:
        """Return the path of a copy in the cache folder, which is downloaded if it is missing. Raises StorageError."""
        key = hashlib.sha256(f"{self.url}\0{self.stamp}".encode()).hexdigest()[:32]
        path = cache_folder() / "remote" / key / self.name
        if path.is_file():
            return path
        part = path.with_name(f".part-{os.getpid()}-{secrets.token_hex(4)}")
        with writing(path, FIX_SPACE):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.open() as source, writing(path, FIX_SPACE), part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            with writing(path, FIX_SPACE):
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


class _Raw(io.RawIOBase):
    """A file of fsspec whose errors are DataErrors that name the URL."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _reachable(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def remote_files(url: str) -> list[RemoteFile]:
    """Return the files that a URL refers to: one file, the data files of a folder, or those that match a pattern.

    Raises DataError if there is none, if the package for the protocol is not installed, and for a failed request.
    """
    match = URL.match(url)
    assert match
    protocol = match["protocol"]
    system = _file_system(url, protocol)
    with _reachable(url):
        path = system._strip_protocol(url)
        if HTTP.match(url):  # has no folders, and a question mark is not a pattern
            paths = [path] if system.exists(path) else []
        elif MAGIC.search(path):
            paths = sorted(entry for entry in system.glob(path) if system.isfile(entry))
        elif system.isdir(path):
            paths = [entry for entry in sorted(system.find(path)) if is_data_file(entry)]
        else:
            paths = [path] if system.isfile(path) else []
        stamps = [_stamp(system, entry) for entry in paths]
    if not paths:
        raise DataError(
            "no such file", where=url, fix="check the URL; a pattern such as *.jsonl must match a data file"
        )
    return [
        RemoteFile(_url_of(protocol, entry), system, entry, stamp) for entry, stamp in zip(paths, stamps, strict=True)
    ]


def _url_of(protocol: str, path: str) -> str:
    """Return the URL of a path of a file system. Those of http are URLs already."""
    return path if URL.match(path) else f"{protocol}://{path.lstrip('/') if protocol != 'file' else path}"


def _stamp(system: Any, path: str) -> str:
    """Return a hash of the properties of a file that change with its content."""
    info = system.info(path)
    names = ("size", "ETag", "etag", "md5Hash", "content_md5", "checksum", "blob_id", "sha256", "mtime", "LastModified")
    named = [f"{name}={info[name]}" for name in (*names, "last_modified", "updated", "created") if info.get(name)]
    return hashlib.sha256("\0".join(named).encode()).hexdigest()


def _file_system(url: str, protocol: str) -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError as error:
        fix = "run pip install fsspec, or download the file and pass its path"
        raise DataError("reading a URL needs the package fsspec, which is not installed", where=url, fix=fix) from error
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:  # its message names the package: "Install s3fs to access S3"
        what = f"reading {protocol}:// needs a package that is not installed: {_first_line(error)}"
        raise DataError(what, where=url, fix="install that package, or download the file and pass its path") from error
    except ValueError as error:
        names = "s3://, gs://, az://, hf://, https:// or file://"
        what = f"fsspec does not know the protocol {protocol}://: {_first_line(error)}"
        raise DataError(what, where=url, fix=f"use {names}, or a path") from error


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    """Turn the errors of a file system, which are of many types, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        fix = "check the URL, the connection and your credentials for this server"
        raise DataError(f"cannot be read: {_first_line(error)}", where=url, fix=fix) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
