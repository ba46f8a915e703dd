"""Weights that are not finite are named, and the share of changed weights is that of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_model

from preftune.errors import ModelError
from preftune.model import load
from preftune.model.weights import changed_share


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :2] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"2 of [\d,]+ weights in model.layers.1.mlp.up_proj.weight"):
        load.load_model(load.Source(str(tmp_path)), torch.float32)


def test_large_finite_weights_are_accepted(tmp_path: Path) -> None:
    """Their sum overflows."""
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:] = 3e38
    model.save_pretrained(tmp_path)
    load.load_model(load.Source(str(tmp_path)), torch.float32)


def test_the_share_of_changed_weights(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    make_model().bfloat16().save_pretrained(before)
    make_model().bfloat16().save_pretrained(after)
    assert changed_share(before, after) == (0, "bf16")
    tensors = load_file(after / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, after / "model.safetensors")
    share, _ = changed_share(before, after) or (0, "")
    assert share == 1
    make_model().save_pretrained(after)
    assert changed_share(before, after) is None
    assert changed_share(tmp_path / "missing", after) is None
