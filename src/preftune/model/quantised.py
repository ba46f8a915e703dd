"""Linear layers whose weights are stored in 4 or 8 bits. They are frozen: gradients pass through them to an adapter.

    nf4    blocks of 64 weights in 4 bits, with one 8-bit scale per block, by the kernels of bitsandbytes: QLoRA
           (Dettmers et al. 2023, arXiv:2305.14314)
    int8   W = scale * Q with one fp32 scale per output row and Q in -127..127, in plain torch

Only weights are quantised. Each product uses the dequantised weight in the precision of its input, with gradients or
without, so log-probs do not depend on the other tokens of a batch and a reference is exact. The layers of the
transformer blocks are quantised; embeddings, output layer and norms keep their precision.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError, ModelError
from preftune.model.attention import base_of
from preftune.model.compile import blocks

BLOCK, SUPER_BLOCK = 64, 256
"""Weights per scale, and scales per second-level scale, in nf4 (QLoRA)."""


class QuantisedLinear(nn.Linear):
    """A linear layer with a quantised weight. `weight` is the dequantised weight, which is computed at every access."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would create a weight
        self.kind, self.in_features, self.out_features = kind, layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        for name, tensor in _quantise(layer.weight.detach().float(), kind).items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.dense(self.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the (out, in) weight in `dtype`."""
        return _dense(self.kind, dtype, (self.out_features, self.in_features), *self.buffers())

    def forward(self, input: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        out: Tensor = _Product.apply(input, self.kind, shape, *self.buffers())  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """x W^T. The backward pass dequantises W again instead of storing it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, shape: tuple[int, int], *stored: Tensor) -> Tensor:
        ctx.kind, ctx.shape, ctx.number = kind, shape, len(stored)
        ctx.save_for_backward(*stored)
        return nn.functional.linear(x, _dense(kind, x.dtype, shape, *stored))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dense = _dense(ctx.kind, grads[0].dtype, ctx.shape, *ctx.saved_tensors)
        return grads[0] @ dense, *[None] * (2 + ctx.number)


def _quantise(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """Return the tensors that store a weight, in the order of the arguments of `_dense`."""
    if kind == "int8":
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-30)
        return {"codes": torch.round(weight / scale).clamp(-127, 127).to(torch.int8), "scale": scale}
    functional = _bitsandbytes()
    codes, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    mean = state.absmax.mean()  # the scales of the blocks are stored in 8 bits, relative to their mean
    scales, second = functional.quantize_blockwise(state.absmax - mean, blocksize=SUPER_BLOCK)
    return {"codes": codes, "scales": scales, "mean": mean, "scale": second.absmax, "map": second.code}


def _dense(kind: str, dtype: torch.dtype, shape: tuple[int, int], *stored: Tensor) -> Tensor:
    """Return the weight in `dtype` from the tensors of `_quantise`."""
    if kind == "int8":
        codes, scale = stored
        return (codes.float() * scale).to(dtype)
    codes, scales, mean, scale, table = stored
    absmax = torch.ops.bitsandbytes.dequantize_blockwise(scales, scale, table, SUPER_BLOCK, torch.float32) + mean
    dense: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, absmax, BLOCK, "nf4", shape, dtype)
    return dense


def _bitsandbytes() -> Any:
    """Return bitsandbytes.functional. Raises ConfigError if the package is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about a kernel that is not used here
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            f"nf4 needs the package bitsandbytes, which cannot be imported: {error}",
            where="model.quant",
            fix="run pip install 'preftune[quant]', or use int8",
        ) from error
    return functional


def require_quant(kind: str | None) -> None:
    """Raise ConfigError if a package that `kind` needs is missing."""
    if kind == "nf4":
        _bitsandbytes()


def quantise(model: Any, kind: str) -> Any:
    """Replace the linear layers of the transformer blocks, one at a time, and freeze the model.

    Raises ModelError for a model without such layers, such as one whose experts are stacked tensors only.
    """
    require_quant(kind)
    count = 0
    for block in blocks(model):
        for name, module in list(block.named_modules()):
            if type(module) is nn.Linear:
                parent, _, key = name.rpartition(".")
                setattr(block.get_submodule(parent), key, QuantisedLinear(module, kind))
                count += 1
    if not count:
        what = f"the blocks of {type(base_of(model)).__name__} have no linear layers"
        raise ModelError(what, where="model.quant", fix="remove model.quant")
    return model.requires_grad_(False)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """Return the quantised layers of a model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantisedLinear))


def dequantise(model: Any, dtype: torch.dtype) -> Any:
    """Replace the quantised layers of a model by plain ones with the same values, in `dtype`."""
    for name, layer in list(quantised_layers(model)):
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.dense(dtype), requires_grad=False)
        plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, plain)
    return model


def quantised_weights(model: nn.Module) -> int:
    """Return the number of weights that are stored in 4 or 8 bits."""
    return sum(layer.in_features * layer.out_features for _, layer in quantised_layers(model))


def largest_layer_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the memory of the largest layer while it is dequantised, in fp32 and in `dtype`; 0 without any."""
    sizes = [layer.in_features * layer.out_features for _, layer in quantised_layers(model)]
    return max(sizes, default=0) * (4 + dtype.itemsize)


def stored_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that store quantised weights."""
    return [tensor for _, layer in quantised_layers(model) for tensor in layer.buffers()]
