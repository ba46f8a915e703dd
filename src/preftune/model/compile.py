"""Compile each transformer block with torch.compile. All blocks share the code that is compiled for the first one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.model.attention import base_of

RECOMPILE_LIMIT = 64  # enough for 4 batch lengths, longer groups, and runs with and without gradient


def compile_blocks(model: Any, constant: bool = False) -> None:
    """Compile each block when it runs for the first time. Segment attention is not compiled.

    constant: compile each batch length separately, for few lengths; otherwise compile once for all lengths
    """
    for block in blocks(model):
        block.compile(dynamic=not constant, recompile_limit=RECOMPILE_LIMIT)


def is_compiled(model: Any) -> bool:
    """Return whether `compile_blocks` was called for `model`."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Run `model` without compilation inside the block, for batches whose lengths do not repeat."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def blocks(model: Any) -> list[nn.Module]:
    """Return the transformer blocks of a model."""
    base = base_of(model)
    count = base.config.get_text_config().num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    what = f"{type(base).__name__} has no module list with {count} blocks"
    raise ModelError(what, where="model.compile", fix="set model.compile=false")
