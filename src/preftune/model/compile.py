"""Compile each transformer block with torch.compile. All blocks share the code that is compiled for the first one.

With gradient checkpointing, the checkpoint stays outside of the compiled code. torch.compile cannot put a checkpoint
into a graph if the checkpointed code has graph breaks, and segment attention is one: it would compile nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from preftune.errors import ModelError
from preftune.model.attention import base_of
from preftune.model.compiler import compiler_settings

_compiled: WeakSet[nn.Module] = WeakSet()


def needs_constant_lengths(layout: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether compiled blocks should get rows of a few constant lengths (see data.layout.Budget).

    A CPU gains from them in fp32. In bf16, and on a GPU, one compilation for all lengths is better: it takes a quarter
    of the start-up time, and padding costs slots. Padded rows keep their lengths.
    """
    return layout != "rows" and device.type == "cpu" and dtype == torch.float32


def compile_blocks(model: Any, constant: bool = False) -> None:
    """Compile each block when it runs for the first time. Segment attention is not compiled.

    constant: compile each batch length separately, for few lengths; otherwise compile once for all lengths.
    Call this after gradient checkpointing is enabled. Raises ModelError if a block cannot have both.
    """
    settings = compiler_settings(dynamic=not constant)
    compiled = cache(partial(torch.compile, **settings))  # one compiled function for all blocks of a class
    for block in blocks(model):
        _compiled.add(block)
        if getattr(block, "gradient_checkpointing", False):
            _compile_inside_checkpoint(block, compiled)
        else:
            block.compile(**settings)


def _compile_inside_checkpoint(block: Any, compiled: Callable[[Any], Any]) -> None:
    """Replace the checkpoint function of a block by one that runs the block's compiled forward."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not isinstance(block, GradientCheckpointingLayer):
        what = f"{type(block).__name__} cannot be compiled and use gradient checkpointing"
        fix = "set model.compile=false or model.gradient_checkpointing=false"
        raise ModelError(what, where="model.compile", fix=fix)
    plain: Any = inspect.unwrap(checkpoint)  # its wrapper disables compilation inside of it

    def run(function: partial[Any], *args: Any) -> Any:
        forward, bound = function.func, function.args
        if isinstance(forward, MethodType):  # transformers 5.21 passes the layer's __call__, later versions its forward
            bound = (forward.__self__, *bound)
            forward = type(forward.__self__).forward  # type: ignore[attr-defined]
        return plain(partial(compiled(forward), *bound, **function.keywords), *args, use_reentrant=False)

    block._gradient_checkpointing_func = run


def is_compiled(model: Any) -> bool:
    """Return whether `compile_blocks` was called for `model`."""
    return any(module in _compiled for module in model.modules())


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Run `model` without compilation inside the block, for batches whose lengths do not repeat."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def training_graph(model: Any) -> Iterator[None]:
    """Run compiled 16-bit blocks with the code of training, even where no gradient is needed.

    torch.compile builds other code for a forward pass without gradients. The two round differently: in bf16, by a few
    hundredths of a nat per response. With the same code, policy and cached reference are equal before the first step,
    and the blocks are compiled once instead of twice. It has no effect on a model without trainable weights (a frozen
    reference, or one without its adapter). The activations of one micro-batch are in memory, as in training.
    """
    half = next(iter(model.parameters())).dtype in (torch.bfloat16, torch.float16)
    if torch.is_grad_enabled() or not half or not is_compiled(model):
        yield
        return
    with torch.enable_grad():
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
