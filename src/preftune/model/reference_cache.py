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
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from preftune.errors import writing
from preftune.files import cache_folder

if TYPE_CHECKING:
    from preftune.types import Ids

Floats = npt.NDArray[np.float32]
FLUSH_TOKENS = 8_000_000


def response_key(prompt_ids: Ids, response_ids: Ids) -> bytes:
    """Return the key of a response: a hash of the prompt's and the response's token ids."""
    digest = hashlib.sha256(len(prompt_ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(prompt_ids, dtype=np.int32).tobytes())
    digest.update(np.ascontiguousarray(response_ids, dtype=np.int32).tobytes())
    return digest.digest()


class Store:
    """The log-probs of one model. `damaged` lists the files whose hash differs from their name."""

    def __init__(self, model_key: str, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "reference" / model_key
        self.damaged: list[str] = []
        self._entries: dict[bytes, tuple[Floats, int, int]] = {}
        self._new: list[tuple[bytes, Floats]] = []
        self._pending = 0
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            self._open(path)

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.stem:
                self.damaged.append(str(path))
                return
        with safe_open(path, framework="numpy") as file:
            keys, offsets, values = (file.get_tensor(name) for name in ("keys", "offsets", "logps"))
        for row, key in enumerate(keys):
            self._entries[key.tobytes()] = (values, int(offsets[row]), int(offsets[row + 1]))

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, key: bytes) -> Floats:
        values, begin, end = self._entries[key]
        return values[begin:end]

    def put(self, key: bytes, logps: Floats) -> None:
        """Add an entry. `flush` writes it to disk."""
        logps = np.ascontiguousarray(logps, dtype=np.float32)
        self._entries[key] = (logps, 0, len(logps))
        self._new.append((key, logps))
        self._pending += len(logps)
        if self._pending >= FLUSH_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write the new entries to a new file, which gets its name only when it is complete."""
        if not self._new:
            return
        lengths = [len(values) for _, values in self._new]
        blob = save(
            {
                "keys": np.frombuffer(b"".join(key for key, _ in self._new), dtype=np.uint8).reshape(-1, 32),
                "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                "logps": np.concatenate([values for _, values in self._new]),
            }
        )
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
            os.replace(file.name, self.folder / f"{hashlib.sha256(blob).hexdigest()}.safetensors")
        self._new.clear()
        self._pending = 0
