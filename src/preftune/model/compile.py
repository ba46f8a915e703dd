"""torch.compile, one transformer block at a time: blocks are alike, so what the first one compiles serves all."""

from __future__ import annotations

from typing import Any

from torch import nn

from preftune.errors import ModelError
from preftune.model.attention import base_of


def compile_blocks(model: Any) -> None:
    """Compile each block for batches of any size, the first time it runs; attention by segments is left as it is."""
    for block in blocks(model):
        block.compile(dynamic=True)


def blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks of a model."""
    base = base_of(model)
    count = base.config.get_text_config().num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{type(base).__name__} has no list of its {count} blocks", fix="set model.compile=false")
