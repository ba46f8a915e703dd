"""Entries of the data cache: folders that are complete or absent, and that are checked before they are used.

    <cache>/data/<key>/
        meta.json     SHA-256 of every other file, and facts about them
        ...           the files

An entry is written to a temporary folder and then renamed. If two processes build the same entry, the first one to
finish wins, and the other uses it. An entry with a damaged or missing file is reported, and built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from preftune.errors import writing
from preftune.files import cache_folder, digest, write_json

META = "meta.json"
DRAFT = ".part-"
OLD_S = 2 * 86400  # age after which the temporary folder of a killed process is removed
FIX = "free disk space, or set PREFTUNE_CACHE to a different folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete entry. `key` is a hash of the content of all its files and of `facts`."""

    folder: Path
    facts: dict[str, Any]
    key: str


def data_folder() -> Path:
    """Return the folder of the data cache."""
    return cache_folder() / "data"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return a hash of the source code that decides what an entry contains."""
    package, hashed = Path(__file__).parents[1], hashlib.sha256()
    converters = ("methods/sft.py", "methods/reward.py", "model/reference_cache.py", "model/scalar.py")  # see derive
    for name in ("types.py", "resolve.py", "sources", "formats", "chat", "data", "lifecycle/data.py", *converters):
        path = package / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            hashed.update(file.name.encode() + file.read_bytes())
    return hashed.hexdigest()


def key_of(*parts: Any) -> str:
    """Return a hash of values of JSON types."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def find(key: str) -> tuple[Entry | None, str]:
    """Return the entry with this key, or None, and why an existing one cannot be used, or ""."""
    folder = data_folder() / key
    if not folder.is_dir():
        return None, ""
    entry = _opened(folder)
    return entry, "" if entry else f"data cache: {folder} is damaged, so it is built again"


def _opened(folder: Path) -> Entry | None:
    """Return the entry in a folder, or None if a file is missing or differs from its hash."""
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        files, facts = meta["files"], meta["facts"]
        if meta["key"] != key_of(files, facts):
            return None
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(lambda name: digest(folder / name), files))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Entry(folder, facts, meta["key"]) if hashes == list(files.values()) else None


@contextmanager
def draft() -> Iterator[Path]:
    """Yield the path of a temporary folder in the data cache, for the caller to create. It is removed on exit."""
    folder = data_folder() / f"{DRAFT}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def close(folder: Path, facts: dict[str, Any]) -> Entry:
    """Return the files in a temporary folder as an entry that no other run can find.

    A file that has been opened can be read even after the folder has been removed.
    """
    files = {path.name: digest(path) for path in sorted(folder.iterdir())}
    return Entry(folder, facts, key_of(files, facts))


def publish(folder: Path, key: str, facts: dict[str, Any]) -> Entry:
    """Turn a temporary folder into the entry with this key, unless another process was faster. Raises StorageError."""
    facts = json.loads(json.dumps(facts))  # as they will be read
    files = {path.name: digest(path) for path in sorted(folder.iterdir())}
    own = Entry(data_folder() / key, facts, key_of(files, facts))
    write_json(folder / META, {"key": own.key, "files": files, "facts": facts})
    with writing(own.folder, FIX):
        _remove_old_drafts(folder.parent)
        for _ in range(10):
            try:
                os.rename(folder, own.folder)
                return own
            except OSError:
                if not own.folder.is_dir():
                    raise
            other = _opened(own.folder)
            if other:
                return other
            _remove(own.folder)
        raise OSError(f"{own.folder} cannot be replaced")


def _remove(folder: Path) -> None:
    """Remove a damaged entry: first rename it, so that no process sees a part of it."""
    trash = folder.with_name(f"{DRAFT}{os.getpid()}-{secrets.token_hex(6)}")
    try:
        os.rename(folder, trash)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(trash, ignore_errors=True)


def _remove_old_drafts(data: Path) -> None:
    for path in data.glob(f"{DRAFT}*"):
        try:
            old = time.time() - path.stat().st_mtime > OLD_S
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
