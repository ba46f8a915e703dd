"""Shares of the work, and checkpoints in parts, without other processes: the number of ranks is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from preftune.errors import ConfigError, RunError
from preftune.ranks import group, shard
from preftune.ranks.checkpoint import Parts, own_rows, write_rows
from preftune.ranks.environment import Place
from preftune.ranks.shard import choose_shards
from preftune.ranks.work import own, sum_gradients


@given(st.lists(st.integers(1, 50), min_size=0, max_size=40), st.integers(1, 6))
def test_every_item_is_in_exactly_one_share(costs: list[int], world: int) -> None:
    items = list(enumerate(costs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "world", lambda: world)
        shares = []
        for rank in range(world):
            patch.setattr(group, "rank", lambda rank=rank: rank)
            shares.append(list(own(items, lambda item: item[1])))
    assert sorted(item for share in shares for item in share) == items
    assert all(share == sorted(share) for share in shares)
    loads = [sum(cost for _, cost in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_one_process_gets_the_items_themselves() -> None:
    items = [3, 1, 2]
    assert own(items, lambda item: 1 / 0) is items


def test_gradients_of_one_process_are_left_alone() -> None:
    weight = torch.zeros(2)
    weight.grad = torch.tensor([1.0, 2.0])
    sum_gradients([weight, torch.zeros(1)])
    assert weight.grad.tolist() == [1.0, 2.0]


def parts_of(folder: Path, rows: torch.Tensor, sizes: list[int]) -> Parts:
    """Write a tensor as parts with `sizes` rows."""
    begin = 0
    for number, size in enumerate(sizes):
        place = {"places": json.dumps({"weights/w": [begin, list(rows.shape)]})}
        if size:
            save_file(
                {"weights/w": rows[begin : begin + size].clone()}, folder / f"part-{number:05d}.safetensors", place
            )
        begin += size
    return Parts(folder)


@pytest.mark.parametrize("sizes", [[7], [4, 3], [3, 3, 1], [2, 2, 2, 1], [1] * 7, [3, 3, 1, 0]])
def test_any_number_of_ranks_can_read_the_rows_that_any_number_has_written(tmp_path: Path, sizes: list[int]) -> None:
    rows = torch.arange(21.0).view(7, 3)
    parts = parts_of(tmp_path, rows, sizes)
    assert torch.equal(parts.read("weights/w"), rows)
    for world in range(1, 9):
        step = -(-7 // world)
        for begin in range(0, 7, step):
            into = torch.full((min(step, 7 - begin), 3), -1.0)
            parts.read_rows("weights/w", begin, into)
            assert torch.equal(into, rows[begin : begin + step])


def test_missing_rows_are_an_error(tmp_path: Path) -> None:
    parts_of(tmp_path, torch.arange(21.0).view(7, 3), [3, 3, 1])
    (tmp_path / "part-00001.safetensors").unlink()
    with pytest.raises(RunError, match="3 rows of weights/w are missing"):
        Parts(tmp_path).read("weights/w")


def test_a_part_has_what_was_written(tmp_path: Path) -> None:
    tensors = {"weights/a": torch.randn(3, 2), "optimizer/a/step": torch.tensor(4.0), "weights/b": torch.zeros(0, 2)}
    assert write_rows(tmp_path, own_rows(tensors), 0) == tmp_path / "part-00000.safetensors"
    parts = Parts(tmp_path)
    assert sorted(parts.names("weights/")) == ["a", "b"]
    for name, tensor in tensors.items():
        assert torch.equal(parts.read(name), tensor)
        assert parts.shapes[name] == tuple(tensor.shape)


@pytest.mark.parametrize(
    ("setting", "needed", "shards"),
    [
        (None, 50, 1),  # fits on each
        (None, 200, 4),  # fits on the four ranks of a machine
        (None, 1000, 8),
        ("whole", 1000, 1),
        ("sharded", 1, 8),
        ("node", 1, 4),
    ],
)
def test_weights_are_split_if_they_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, needed: float, shards: int
) -> None:
    monkeypatch.setattr(group, "world", lambda: 8)
    monkeypatch.setattr(group, "all_min", lambda number: number)
    monkeypatch.setattr(shard, "place", lambda: Place(0, 8, 0, 4))
    if setting:
        monkeypatch.setenv("PREFTUNE_WEIGHTS", setting)
    count, line = choose_shards(needed, 100.0)
    assert count == shards
    assert line.startswith("ranks: 8")


def test_an_unknown_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_WEIGHTS", "split")
    with pytest.raises(ConfigError, match="auto, whole, node, sharded"):
        choose_shards(1, 1)
