"""Checkpoints of weights that are split among ranks: one safetensors file per rank, readable by any number of ranks.

    part-00000.safetensors   this rank's rows of each tensor; the header has its first row and the shape of the whole

Names are "weights/<parameter>" and "optimizer/<parameter>/<key>". Rows and shapes are one entry of the header, because
safetensors writes several entries in a random order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from preftune.errors import RunError
from preftune.ranks.shard import first_row, is_first_copy, local

PARTS = "part-?????.safetensors"
PLACES = "places"  # entry of the header: the first row, and the shape of the whole, by name


@dataclass(frozen=True, slots=True)
class Rows:
    """A rank's rows of tensors by name, and where they begin in the whole, with its shape."""

    values: Mapping[str, Tensor]
    places: Mapping[str, tuple[int, list[int]]]


def own_rows(tensors: Mapping[str, Tensor], copy: bool = False) -> Rows:
    """Return the rows that this rank writes, in CPU memory; with `copy`, later changes do not change them."""
    rows, places = {}, dict[str, tuple[int, list[int]]]()
    for name, tensor in tensors.items():
        part = local(tensor.detach())
        if is_first_copy(tensor) and (part.numel() or not tensor.numel()):
            rows[name] = part.contiguous().to("cpu", copy=copy)
            places[name] = first_row(tensor), list(tensor.shape)
    return Rows(rows, places)


def write_rows(folder: Path, rows: Rows, rank: int) -> Path | None:
    """Write the part of a rank, and return the file; None if it has no rows."""
    if not rows.values:
        return None
    path = folder / f"part-{rank:05d}.safetensors"
    save_file(dict(rows.values), path, metadata={PLACES: json.dumps(rows.places, sort_keys=True)})
    return path


class Parts:
    """The tensors of a checkpoint in parts. Values are read when they are requested."""

    def __init__(self, folder: Path, complete: Mapping[str, str] | None = None) -> None:
        """Open the parts, or the files in `complete`, which hold whole tensors and whose names get a prefix."""
        self.folder = folder
        self._pieces: dict[str, list[tuple[Any, str, int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob(PARTS)) or [
            folder / name for name in complete or {} if (folder / name).is_file()
        ]:
            opened: Any = safe_open(path, framework="pt")
            places = json.loads((opened.metadata() or {}).get(PLACES, "{}"))
            prefix = (complete or {}).get(path.name, "")
            for key in opened.keys():  # noqa: SIM118
                shape = opened.get_slice(key).get_shape()
                row, shape = places.get(key, (0, shape))
                self._pieces.setdefault(prefix + key, []).append((opened, key, row))
                self.shapes[prefix + key] = tuple(shape)

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._pieces if name.startswith(prefix)]

    def read(self, name: str) -> Tensor:
        """Return a whole tensor."""
        opened, key, _ = self._pieces[name][0]
        if not self.shapes[name]:
            scalar: Tensor = opened.get_tensor(key)
            return scalar
        values = torch.empty(self.shapes[name], dtype=self.dtype(name))
        self.read_rows(name, 0, values)
        return values

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        opened, key, _ = self._pieces[name][0]
        if not self.shapes[name]:
            return cast(torch.dtype, opened.get_tensor(key).dtype)
        return cast(torch.dtype, opened.get_slice(key)[:0].dtype)

    @torch.no_grad()
    def read_rows(self, name: str, begin: int, into: Tensor) -> None:
        """Fill `into` with the rows of a tensor from `begin`. Raises RunError if rows are missing."""
        if not into.dim():
            into.copy_(self.read(name))
            return
        missing = into.shape[0]
        for opened, key, row in self._pieces[name]:
            part = opened.get_slice(key)
            low, high = max(begin, row), min(begin + into.shape[0], row + part.get_shape()[0])
            if low < high:
                into[low - begin : high - begin].copy_(part[low - row : high - row])
                missing -= high - low
        if missing:
            fix = "restore the folder from a backup, or delete it to resume from the one before"
            raise RunError(f"{missing} rows of {name} are missing", where=str(self.folder), fix=fix)

    def fill(self, name: str, tensor: Tensor) -> None:
        """Set a tensor, or this rank's part of it, to the values in the checkpoint."""
        self.read_rows(name, first_row(tensor), local(tensor))
