"""Reference log-probs on disk: one float32 per scored token, addressed by a hash of everything they depend on.

    <cache>/reference/<model key>/<sha256 of the file>.safetensors
        keys         (R, 32) uint8   sha256 of prompt ids and response ids
        offsets      (R + 1,) int64  response r owns logps[offsets[r]:offsets[r + 1]]
        logps        (N,) float32

The model key is a hash of the model's weights, buffers and config, the compute dtype and the layout. So an entry is
never outdated, and runs that differ only in beta, loss, learning rate, epochs or the order of the data share entries.
A file is named after the hash of its bytes. If the hash differs, the file is reported as damaged, and its entries are
computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from preftune.errors import writing
from preftune.files import MappedFile, cache_folder, digest

if TYPE_CHECKING:
    from preftune.types import Ids, Mask, TokenGroup

Floats = npt.NDArray[np.float32]
FLUSH_TOKENS = 8_000_000  # log-probs that are in memory before they are written


def response_keys(group: TokenGroup) -> list[bytes]:
    """Return the key of each response of a group."""
    masks = group.masks or (None,) * len(group.response_ids)
    return [response_key(group.prompt_ids, ids, mask) for ids, mask in zip(group.response_ids, masks, strict=True)]


def response_key(prompt_ids: Ids, response_ids: Ids, mask: Mask | None = None) -> bytes:
    """Return the key of a response: a hash of the prompt's and the response's token ids, and of a mask."""
    digest = hashlib.sha256(len(prompt_ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(prompt_ids, dtype=np.int32).tobytes())
    digest.update(np.ascontiguousarray(response_ids, dtype=np.int32).tobytes())
    if mask is not None:
        digest.update(np.packbits(mask).tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of the store. Only its offsets are in memory; keys and log-probs are read when they are needed."""

    file: MappedFile
    keys_at: int
    logps_at: int
    offsets: npt.NDArray[np.int64]

    def key(self, row: int) -> bytes:
        self.file.count()
        begin = self.keys_at + 32 * row
        return self.file.map[begin : begin + 32]

    def logps(self, row: int) -> Floats:
        self.file.count()
        begin, end = (self.logps_at + 4 * int(offset) for offset in self.offsets[row : row + 2])
        return np.frombuffer(self.file.map[begin:end], dtype=np.float32)


class Store:
    """The log-probs of one model. `damaged` lists the files whose hash differs from their name.

    Memory holds 24 bytes per response: the beginning of its key, and where its log-probs are.
    """

    def __init__(self, model_key: str, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "reference" / model_key
        self.damaged: list[str] = []
        self._parts: list[_Part] = []
        self._starts = np.zeros(0, dtype=np.uint64)  # the first 8 bytes of all keys, in ascending order
        self._places = np.zeros((0, 2), dtype=np.int32)  # part and row of each
        self._new: dict[bytes, Floats] = {}
        self._pending = 0
        self._paths: set[Path] = set()
        self.reread()

    def reread(self) -> None:
        """Open the files that other processes have written since."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            if path in self._paths:
                continue
            if digest(path) != path.stem:
                self._paths.add(path)
                self.damaged.append(str(path))
            else:
                self._open(path)

    def _open(self, path: Path) -> None:
        self._paths.add(path)
        file = MappedFile(path)
        size = int.from_bytes(file.map[:8], "little")
        header = json.loads(file.map[8 : 8 + size])
        at = {name: 8 + size + header[name]["data_offsets"][0] for name in ("keys", "logps")}
        with safe_open(path, framework="numpy") as tensors:
            keys, offsets = tensors.get_tensor("keys"), tensors.get_tensor("offsets")
        starts = np.ascontiguousarray(keys[:, :8]).view(np.uint64).reshape(-1)
        places = np.stack([np.full(len(keys), len(self._parts)), np.arange(len(keys))], axis=1).astype(np.int32)
        self._parts.append(_Part(file, at["keys"], at["logps"], offsets))
        starts, places = np.concatenate([self._starts, starts]), np.concatenate([self._places, places])
        order = np.argsort(starts, kind="stable")
        self._starts, self._places = starts[order], places[order]

    def _find(self, key: bytes) -> tuple[_Part, int] | None:
        start = np.frombuffer(key[:8], dtype=np.uint64)[0]
        at = int(np.searchsorted(self._starts, start))
        place = None
        while at < len(self._starts) and self._starts[at] == start:
            part, row = self._parts[self._places[at, 0]], int(self._places[at, 1])
            place = (part, row) if part.key(row) == key else place  # the last file counts
            at += 1
        return place

    def __contains__(self, key: bytes) -> bool:
        return key in self._new or self._find(key) is not None

    def get(self, key: bytes) -> Floats:
        if key in self._new:
            return self._new[key]
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        return place[0].logps(place[1])

    def put(self, key: bytes, logps: Floats) -> None:
        """Add an entry. `flush` writes it to disk."""
        self._new[key] = np.ascontiguousarray(logps, dtype=np.float32)
        self._pending += len(logps)
        if self._pending >= FLUSH_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write the new entries to a new file, which gets its name only when it is complete."""
        if not self._new:
            return
        lengths = [len(values) for values in self._new.values()]
        blob = save(
            {
                "keys": np.frombuffer(b"".join(self._new), dtype=np.uint8).reshape(-1, 32),
                "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                "logps": np.concatenate(list(self._new.values())),
            }
        )
        path = self.folder / f"{hashlib.sha256(blob).hexdigest()}.safetensors"
        fix = "free disk space, set PREFTUNE_CACHE to a different folder, or set reference.kind=frozen"
        with writing(self.folder, fix):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                try:
                    file.write(blob)
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    Path(file.name).unlink()
                    raise
            os.replace(file.name, path)
            self._open(path)
        self._new, self._pending = {}, 0
