"""Checkpoints in parts, written by one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preftune.errors import RunError
from preftune.ranks.checkpoint import Parts, own_rows, write_rows

TENSORS = {f"weights/layer.{number}": torch.randn(3, number + 1) for number in range(12)}


def test_the_same_tensors_in_any_order_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        path = write_rows(tmp_path / str(number), own_rows(dict(list(TENSORS.items())[:: (-1) ** number])), 0)
        assert path is not None
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_a_part_is_read_as_a_whole_and_by_rows(tmp_path: Path) -> None:
    write_rows(tmp_path, own_rows({**TENSORS, "optimizer/layer.0/step": torch.tensor(3.0)}), 0)
    parts = Parts(tmp_path)
    assert parts.names("optimizer/") == ["layer.0/step"]
    for name, tensor in TENSORS.items():
        assert torch.equal(parts.read(name), tensor)
        rows = torch.empty_like(tensor[1:])
        parts.read_rows(name, 1, rows)
        assert torch.equal(rows, tensor[1:])
    with pytest.raises(RunError, match=r"1 rows of weights/layer\.3 are missing"):
        parts.read_rows("weights/layer.3", 1, torch.empty(3, 4))
